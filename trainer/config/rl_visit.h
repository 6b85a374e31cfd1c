// The visitors of rl_options.h (see visit.h): every key with its range or choices and what it means.
#pragma once

#include "trainer/config/rl_options.h"
#include "trainer/config/rules.h"

namespace cairn::config {

inline const std::vector<std::string>& task_names() {
  static const std::vector<std::string> names = {"arithmetic", "countdown", "sorting", "recall", "data"};
  return names;
}

inline const std::vector<std::string>& reward_names() {
  static const std::vector<std::string> names = {"number",
                                                 "choice",
                                                 "exact_match",
                                                 "countdown",
                                                 "format",
                                                 "think_format_reward",
                                                 "soft_overlong_punishment_reward",
                                                 "cosine_scaled_reward",
                                                 "repetition_penalty_reward",
                                                 "length",
                                                 "program"};
  return names;
}

template <class V>
void visit(V& v, FieldMap& o) {
  v.rest(o.names);
}

template <class V>
void visit(V& v, TaskOptions& o) {
  v.key("name", o.name, one_of(task_names()), "what is trained on; data: problems from files");
  v.key("prompt", o.prompt, any(), "template of the prompt, {field} stands for a field (\"\": the task's own)");
  v.key("chat", o.chat, any(), "the prompt is a user's message for the model's chat template, not plain text");
  v.key("system", o.system, any(), "chat: a system message before it (\"\": none)");
  v.key("held_out", o.held_out, between(0, 0.9), "share of the problems, by hash, that evaluation alone sees");
  v.key("levels", o.levels, between(1, 8), "generated tasks: levels, drawn from evenly");
  v.key("digits", o.digits, between(1, 9), "arithmetic: digits of an operand (null: by the level)");
  v.key("operands", o.operands, between(2, 16), "arithmetic: numbers in an expression (null: by the level)");
  v.key("operators", o.operators, any(), "arithmetic: some of +-* (null: by the level)");
  v.key("numbers", o.numbers, between(2, 256), "countdown (to 8), sorting: numbers in a problem (null: by the level)");
  v.key("largest", o.largest, between(1, 1000000), "countdown, sorting: the largest of them (null: by the level)");
  v.key("pairs", o.pairs, between(1, 4096), "recall: keys with values (null: by the level)");
  v.key("gap", o.gap, between(0, 65536), "recall: words of noise before each pair (null: by the level)");
  v.key("file", o.file, any(), "data: JSON lines or arrays of objects: a file, a folder or a glob");
  v.key("evaluation", o.evaluation, any(), "data: files of the evaluation (\"\": held_out of `file`)");
  v.section("fields", o.fields, "data: name in templates: name in the file, as in {question: Question}");
  v.key("answer", o.answer, any(), "data: template of the reference answer, as in \"{answer}\"");
  v.key("extract", o.extract, one_of({"text", "hashes", "boxed", "tag", "last_line", "last_number", "pattern"}),
        "data: what of the answer is the reference; hashes: behind the last ####; tag: in <answer>");
  v.key("pattern", o.pattern, any(), "data, extract: pattern: a regular expression with one group");
}

template <class V>
void visit(V& v, RlOptions& o) {
  auto& p = o.policy;
  auto& a = o.advantage;
  v.key("num_generations", a.num_generations, at_least(1), "completions of each prompt; divides train.batch");
  v.key("max_completion_length", p.max_completion_length, at_least(1), "tokens of a completion at most");
  v.key("min_completion_length", o.min_completion_length, at_least(0), "tokens before which none ends it");
  v.key("temperature", o.temperature, above(0), "of sampling, and of the log-probabilities that are learned from");
  v.key("top_p", o.top_p, between(0, 1), "sampling: the smallest set of tokens of at least this mass");
  v.key("top_k", o.top_k, at_least(0), "sampling: the likeliest (0: all)");
  v.key("min_p", o.min_p, from_below(0, 1), "sampling: tokens at least this likely beside the likeliest");
  v.key("stop", o.stop, any(), "texts that end a completion");
  v.key("loss_type", p.loss_type, any(), "grpo bnpo dr_grpo dapo cispo sapo luspo vespo rloo");
  v.key("importance_sampling_level", p.importance_sampling_level, one_of({"token", "sequence"}), "of the ratio");
  v.key("epsilon", p.epsilon, above(0), "clip of the ratio");
  v.key("epsilon_high", p.epsilon_high, above(0), "its upper side (null: epsilon); cispo: the cap itself");
  v.key("delta", p.delta, above(0), "largest ratio of the unclipped term");
  v.key("beta", p.beta, at_least(0), "coefficient of the KL to the weights that the run began with");
  v.key("kl_estimator", p.kl_estimator, one_of({"k1", "k2", "k3"}), "how the KL is estimated");
  v.key("kl_in_reward", p.kl_in_reward, any(), "the KL is taken off the reward, not added to the loss");
  v.key("use_bias_correction_kl", p.use_bias_correction_kl, any(), "the KL of the loss is weighted by the ratio");
  v.key("mask_truncated_completions", p.mask_truncated_completions, any(), "nothing is learned from cut completions");
  v.key("top_entropy_quantile", p.top_entropy_quantile, between(0, 1), "share of the tokens learned from");
  v.key("off_policy_mask_threshold", p.off_policy_mask_threshold, above(0), "nats a token");
  v.key("sapo_temperature_neg", p.sapo_temperature_neg, above(0), "sapo");
  v.key("sapo_temperature_pos", p.sapo_temperature_pos, above(0), "sapo");
  v.key("vespo_k_pos", p.vespo_k_pos, above(0), "vespo");
  v.key("vespo_lambda_pos", p.vespo_lambda_pos, above(0), "vespo");
  v.key("vespo_k_neg", p.vespo_k_neg, above(0), "vespo");
  v.key("vespo_lambda_neg", p.vespo_lambda_neg, above(0), "vespo");
  v.key("entropy_coef", p.entropy_coef, any(), "bonus for entropy");
  v.key("vllm_importance_sampling_correction", p.vllm_importance_sampling_correction, any(),
        "weights of the policy over the one that sampled");
  v.key("vllm_importance_sampling_mode", p.vllm_importance_sampling_mode,
        one_of({"token_truncate", "token_mask", "sequence_truncate", "sequence_mask"}), "how they are bounded");
  v.key("vllm_importance_sampling_clip_max", p.vllm_importance_sampling_clip_max, above(0), "their largest");
  v.key("vllm_importance_sampling_clip_min", p.vllm_importance_sampling_clip_min, above(0), "their least");
  v.key("advantage_estimator", a.advantage_estimator, any(),
        "grpo rloo reinforce_plus_plus reinforce_plus_plus_baseline");
  v.key("reward_weights", a.reward_weights, any(), "one a reward (empty: 1 each)");
  v.key("multi_objective_aggregation", a.multi_objective_aggregation,
        one_of({"sum_then_normalize", "normalize_then_sum"}), "of several rewards");
  v.key("scale_rewards", a.scale_rewards, one_of({"group", "batch", "none"}), "what divides the advantages");
  v.key("normalize_advantages", a.normalize_advantages, any(), "rloo");
  v.key("gamma", a.gamma, between(0, 1), "reinforce_plus_plus: discount");
}

template <class V>
void visit(V& v, RolloutOptions& o) {
  v.key("page_size", o.page_size, at_least(16), "rows of a page of keys and values: 16, 32 or a multiple of 64");
  v.key("max_batch", o.max_batch, at_least(1), "sequences that are decoded together");
  v.key("cache_mib", o.cache_mib, at_least(1), "memory of keys and values; sequences wait where they do not fit");
  v.key("exact", o.exact, any(), "log-probabilities of the samples have the trainer's bits");
  v.key("overflow", o.overflow, one_of({"error", "truncate"}), "a completion that would leave the model's context");
}

template <class V>
void visit(V& v, RewardOptions& o) {
  v.key("name", o.name, one_of(reward_names()), "how an answer is judged");
  v.key("label", o.label, any(), "name in metrics and records (\"\": the reward's)");
  v.key("from", o.from, one_of({"boxed", "hashes", "tag", "phrase", "last_line", "last", "text"}),
        "where the answer is looked for, the first place that is there counts ([]: the reward's own order)");
  v.key("after_think", o.after_think, any(), "the answer stands behind the reasoning, if there is any");
  v.key("letters", o.letters, any(), "choice: letters of the options, as in ABCD (\"\": by the problem)");
  v.key("normalize", o.normalize, one_of({"space", "case", "punctuation", "articles"}),
        "exact_match: what makes no difference");
  v.key("pattern", o.pattern, any(), "format: a regular expression (PCRE2), found anywhere unless it says ^ or $");
  v.key("max_completion_len", o.max_completion_len, at_least(1),
        "soft_overlong_punishment_reward, cosine_scaled_reward: tokens (null: the run's max_completion_length)");
  v.key("soft_punish_cache", o.soft_punish_cache, at_least(0),
        "soft_overlong_punishment_reward: tokens before the end where it sets in");
  v.key("min_value_wrong", o.min_value_wrong, any(), "cosine_scaled_reward: of the shortest wrong answer");
  v.key("max_value_wrong", o.max_value_wrong, any(), "cosine_scaled_reward: of the longest wrong answer");
  v.key("min_value_correct", o.min_value_correct, any(), "cosine_scaled_reward: of the longest right answer");
  v.key("max_value_correct", o.max_value_correct, any(), "cosine_scaled_reward: of the shortest right answer");
  v.key("ngram_size", o.ngram_size, between(1, 64), "repetition_penalty_reward: tokens of an n-gram");
  v.key("max_penalty", o.max_penalty, Rule{.most = 0}, "repetition_penalty_reward: where all is repeated");
  v.key("target", o.target, at_least(0), "length: tokens aimed at");
  v.key("coefficient", o.coefficient, above(0), "length: taken off for every token away from the target");
  v.key("at_most", o.at_most, any(), "length: shorter is as good");
  v.key("use_all", o.use_all, any(), "countdown: every number once; false: at most once");
  v.key("partial", o.partial, between(0, 1), "countdown: for the right numbers and another result");
  v.key("program", o.program, any(), "program: a line for /bin/sh");
  v.key("argv", o.argv, any(), "program: the program and its arguments, instead of a line");
  v.key("folder", o.folder, any(), "program: the folder that it runs in (\"\": the current one)");
  v.key("timeout", o.timeout, above(0), "program: seconds for a batch; the first one pays for the start");
  v.key("restarts", o.restarts, at_least(0), "program: over the run, after it died, hung or broke the protocol");
  v.key("workers", o.workers, between(1, 256), "program: processes that share a batch");
}

}  // namespace cairn::config
