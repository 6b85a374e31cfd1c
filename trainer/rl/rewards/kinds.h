// The makers of the rewards; rewards.cpp holds the table. Names that TRL has mean what they mean there.
#pragma once

#include "trainer/rl/rewards/reward.h"

namespace cairn::rl {

// 1 where the completion's number equals the reference's exactly (number.h), else 0; no verdict where the reference is
// no number. The number is the whole text of the first place of `from` that is there, or, where words stand beside it,
// the only one in a box, a tag or a line, the first one behind ####; `last`: the last number of the text. By default
// from: [boxed, hashes, tag, last].
std::unique_ptr<Reward> make_number(const config::RewardOptions& options, const RewardContext& context);
// The verdict of one sample: right, wrong, or none without a number in the reference.
std::optional<bool> number_is_right(const Sample& sample, const std::vector<std::string>& from, bool after_think);

// 1 where the chosen letter is the reference's, else 0; no verdict where the reference is no letter. Letters count up
// to `letters`, else to the number of the problem's field `options`, else to J. By default from: [boxed, hashes, tag,
// phrase, last]; phrase: behind the last "answer is", "answer:", "option"; last: the last (B), else the last capital
// letter that stands alone and is not the article A or the pronoun I.
std::unique_ptr<Reward> make_choice(const config::RewardOptions& options, const RewardContext& context);

// 1 where the answer's text equals the reference, else 0. normalize: space (runs of blanks are one, none around), case
// (ASCII), punctuation (ASCII marks count as blanks), articles (a, an, the go; SQuAD's rule). By default from: [boxed,
// hashes, tag, text].
std::unique_ptr<Reward> make_exact_match(const config::RewardOptions& options, const RewardContext& context);

// 1 where the expression uses the numbers of the problem's field `numbers` (each once; use_all: false: at most once)
// and equals its field `target` exactly; `partial` where only the target is missed; else 0. "expression = target" is
// taken too. By default from: [boxed, hashes, tag, last_line]. Throws where a problem lacks the fields.
std::unique_ptr<Reward> make_countdown_reward(const config::RewardOptions& options, const RewardContext& context);

// 1 where `pattern` is found in the completion, else 0; extra.gave_up where the text made the search too long (0 then).
std::unique_ptr<Reward> make_format(const config::RewardOptions& options, const RewardContext& context);

// TRL's think_format_reward: 1 where the completion begins with <think>, has no second one, and closes it. A prompt
// that ended with the opening tag counts as the beginning of the completion.
std::unique_ptr<Reward> make_think_format(const config::RewardOptions& options, const RewardContext& context);

// TRL's get_soft_overlong_punishment (DAPO, Yu et al. 2025, equation 13), L = max_completion_len, c =
// soft_punish_cache, n tokens: 0 for n <= L - c; (L - c - n) / c for n <= L; -1 beyond.
std::unique_ptr<Reward> make_soft_overlong(const config::RewardOptions& options, const RewardContext& context);

// TRL's get_cosine_scaled_reward (Yeo et al. 2025, "Demystifying long chain-of-thought reasoning in LLMs", appendix
// C.1) with the verdict of `number`: low + (high - low) (1 + cos(pi min(n / L, 1))) / 2, low and high being
// min_value_correct and max_value_correct of a right answer, max_value_wrong and min_value_wrong of a wrong one.
std::unique_ptr<Reward> make_cosine(const config::RewardOptions& options, const RewardContext& context);

// TRL's get_repetition_penalty_reward (the same paper, C.2): max_penalty times the share of n-grams of token ids that
// occurred before; 0 for fewer than ngram_size tokens.
std::unique_ptr<Reward> make_repetition(const config::RewardOptions& options, const RewardContext& context);

// -coefficient |n - target| (L1, Aggarwal and Welleck 2025, equation 1, the term of length); at_most: only above it.
std::unique_ptr<Reward> make_length(const config::RewardOptions& options, const RewardContext& context);

// A program of the user's (program.h).
std::unique_ptr<Reward> make_program(const config::RewardOptions& options, const RewardContext& context);

}  // namespace cairn::rl
