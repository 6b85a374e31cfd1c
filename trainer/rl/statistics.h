// What an evaluation with several answers a problem says, and how sure it is. Scores are in [0, 1]; a right answer has
// 1. NaN stands for an answer without a verdict and is left out.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace cairn::rl {

struct MeanEstimate {
  double mean = 0;  // NaN: nothing to go by
  // Standard error of the mean over problems, Bessel-corrected; NaN with fewer than two. Answers to one problem are no
  // independent draws, so problems are what counts (Miller 2024, "Adding error bars to evals", clustered errors).
  double standard_error = 0;
  int64_t problems = 0;
};

// The mean over problems of `values`, one a problem.
MeanEstimate estimate_mean(std::span<const double> values);

// Scores of all answers: [problems][answers], ragged. Mean over problems of the mean over their answers.
MeanEstimate accuracy(const std::vector<std::vector<double>>& scores);

// Unbiased estimate of the chance that at least one of k answers is right, c of n being right: 1 - C(n-c, k) / C(n, k),
// as the product of 1 - k/i over i = n-c+1 .. n (Chen et al. 2021, "Evaluating large language models trained on code",
// section 2.1). Throws std::invalid_argument unless 0 <= c <= n and 1 <= k <= n.
double pass_at_k(int64_t n, int64_t c, int64_t k);

// pass@k over problems; an answer is right where its score is 1. Problems with fewer than k verdicts are left out.
MeanEstimate pass_at_k(const std::vector<std::vector<double>>& scores, int64_t k);

struct Vote {
  std::string answer;  // in a form where equal answers are equal texts; "": none, which does not vote
  double score = 0;
};

// The score of the answer that most of the votes name. Ties are shared evenly; the score of an answer is the mean of
// its votes' (NaN left out). Without any answer: 0. NaN: none of the answers that win has a verdict.
double majority(std::span<const Vote> votes);

// majority@k over problems: answers [problems][answers] in consecutive groups of k; what does not fill a group is left
// out. Throws std::invalid_argument for k < 1.
MeanEstimate majority_at_k(const std::vector<std::vector<Vote>>& votes, int64_t k);

struct Lengths {
  int64_t count = 0;
  double mean = 0;  // NaN where there are none
  int64_t least = 0, median = 0, most = 0;
};

// The median is the lower one of an even number.
Lengths lengths(std::vector<int64_t> tokens);

}  // namespace cairn::rl
