// The settings of what a run of reinforcement learning trains on and how answers are judged: `task:` and `rewards:`.
// What each key means, its range and which task or reward reads it stand in rl_visit.h.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "trainer/config/options.h"
#include "trainer/rl/options.h"

namespace cairn::config {

// `fields: {question: Question}`: a template's name -> the field of the file, any number of them.
struct FieldMap {
  Json names = Json::object();
  bool operator==(const FieldMap&) const = default;
};

struct TaskOptions {
  std::string name;                         // arithmetic countdown sorting recall data
  std::string prompt;                       // template; "": the task's own
  bool chat = false;                        // the prompt is a user's message, not plain text
  std::string system;                       // chat: the message before it; "": none
  double held_out = 0.1;                    // share of the problems, by hash, that evaluation alone sees
  std::vector<int64_t> levels = {1};        // generated tasks: drawn from evenly
  std::optional<int64_t> digits, operands;  // arithmetic; null: by the level
  std::optional<std::string> operators;     // arithmetic
  std::optional<int64_t> numbers, largest;  // countdown, sorting
  std::optional<int64_t> pairs, gap;        // recall
  std::string file, evaluation;             // data: files, folders or globs, absolute once resolved
  FieldMap fields;                          // data
  std::string answer;                       // data: template
  std::string extract = "text";             // data: what of the answer is the reference
  std::string pattern;                      // data, extract: pattern
  bool operator==(const TaskOptions&) const = default;
};

// Reinforcement learning: GRPOConfig's keys; what is sampled and what is learned from it.
struct RlOptions {
  rl::PolicyOptions policy;
  rl::AdvantageOptions advantage;
  double temperature = 1.0, top_p = 1.0, min_p = 0.0;
  int64_t top_k = 0;              // 0: off
  std::vector<std::string> stop;  // texts that end a completion
  int64_t min_completion_length = 0;
  bool operator==(const RlOptions&) const = default;
};

// The engine that samples.
struct RolloutOptions {
  int64_t page_size = 64, max_batch = 64, cache_mib = 1024;
  bool exact = false;
  std::string overflow = "error";  // error truncate
  bool operator==(const RolloutOptions&) const = default;
};

struct RewardOptions {
  std::string name;               // number choice exact_match format think_format_reward ...
  std::string label;              // in metrics and records; "": the name
  std::vector<std::string> from;  // where the answer is looked for, in this order; empty: the reward's own
  bool after_think = true;        // the answer stands behind the reasoning
  std::string letters;            // choice; "": as many as the problem has options, else A to J
  std::vector<std::string> normalize = {"space"};  // exact_match
  std::string pattern;                             // format
  std::optional<int64_t> max_completion_len;       // lengths in tokens; null: the run's max_completion_length
  int64_t soft_punish_cache = 0;                   // soft_overlong_punishment_reward
  double min_value_wrong = -1, max_value_wrong = -0.5, min_value_correct = 0.5, max_value_correct = 1;  // cosine
  int64_t ngram_size = 3;                                                                               // repetition
  double max_penalty = -1;                                                                              // repetition
  int64_t target = 0;                                                                                   // length
  double coefficient = 0.001;                                                                           // length
  bool at_most = false;                                                                                 // length
  bool use_all = true;                                                                                  // countdown
  double partial = 0;                                                                                   // countdown
  std::string program;            // program: a line for /bin/sh
  std::vector<std::string> argv;  // program: the program and its arguments instead
  std::string folder;             // program: where it runs; "": the current folder
  double timeout = 60;            // program: seconds a batch
  int restarts = 3;               // program: over the whole run, each worker
  int workers = 1;                // program: processes that share a batch
  bool operator==(const RewardOptions&) const = default;
};

}  // namespace cairn::config
