// Settings of learning from preferences, by the names of TRL 1.16's DPOConfig, CPOConfig, ORPOConfig and KTOConfig,
// with their defaults.
#pragma once

#include <string>
#include <vector>

namespace cairn::preference {

struct Options {
  std::vector<std::string> loss_type = {"sigmoid"};  // the table of pairs.cpp, or one of singles.cpp
  std::vector<double> loss_weights;                  // empty: 1 each
  double beta = 0.1;
  double label_smoothing = 0;                    // robust, exo_pair, cpo, simpo
  std::string f_divergence_type = "reverse_kl";  // forward_kl js_divergence alpha_divergence
  double f_alpha_divergence_coef = 0.5;
  double discopop_tau = 0.05;
  double simpo_gamma = 0.5;
  double cpo_alpha = 1.0;  // cpo, cpo_hinge, cpo_ipo, simpo: weight of the likelihood of the chosen completion
  double desirable_weight = 1.0, undesirable_weight = 1.0;  // kto, apo_zero_unpaired
};

// What the trainer has to supply for these losses.
struct Needs {
  bool reference = false;   // log-probabilities of the reference
  bool singles = false;     // completions with a label, not pairs
  bool kl = false;          // KTO's estimate, from mismatched pairs
  bool likelihood = false;  // the log-likelihood of chosen completions is part of the loss ...
  bool prompt = false;      // ... and that of their prompts, too
};

// Throws std::invalid_argument naming the key, the value and the reason where a setting is out of its range, has no
// part in the loss, or losses do not go together.
Needs check(const Options& options);

}  // namespace cairn::preference
