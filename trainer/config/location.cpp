#include "trainer/config/location.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>

namespace cairn::config {
namespace {

// What other trainers call our keys; the right side is tried where it is among the candidates.
const std::multimap<std::string_view, std::string_view> kOtherNames = {
    {"learning_rate", "lr"},
    {"max_lr", "lr"},
    {"learning_rate", "optim.lr"},
    {"batch_size", "batch"},
    {"global_batch_size", "batch"},
    {"train_batch_size", "batch"},
    {"micro_batch_size", "micro_batch"},
    {"per_device_train_batch_size", "micro_batch"},
    {"seq_len", "context"},
    {"seq_length", "context"},
    {"sequence_length", "context"},
    {"max_seq_len", "context"},
    {"max_length", "context"},
    {"block_size", "context"},
    {"max_steps", "steps"},
    {"max_iters", "steps"},
    {"num_train_epochs", "epochs"},
    {"warmup_steps", "warmup"},
    {"grad_clip", "clip"},
    {"max_grad_norm", "clip"},
    {"gradient_checkpointing", "activation_checkpointing"},
    {"dtype", "precision"},
    {"lr_scheduler", "schedule"},
    {"lr_scheduler_type", "schedule"},
    {"optimizer", "optim"},
    {"optimizer", "name"},
    {"dataset", "train"},
    {"dataset", "data"},
    {"save_steps", "every"},
    {"eval_steps", "every"},
    {"save_total_limit", "keep"},
    {"min_lr", "final"},
    {"n_layer", "num_hidden_layers"},
    {"n_head", "num_attention_heads"},
    {"n_embd", "hidden_size"},
    {"dim", "hidden_size"},
    {"d_model", "hidden_size"},
    {"vocab", "vocab_size"},
    {"evaluation", "eval"},
    {"logging_steps", "log_every"},
};

// Edits (insertion, removal, change, exchange of neighbours) that make b of a: Damerau 1964, restricted.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<std::size_t>> d(a.size() + 1, std::vector<std::size_t>(b.size() + 1));
  for (std::size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  for (std::size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i)
    for (std::size_t j = 1; j <= b.size(); ++j) {
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  return d[a.size()][b.size()];
}

std::string initials(std::string_view key) {
  std::string first;
  for (std::size_t i = 0; i < key.size(); ++i)
    if (key[i] != '_' && (i == 0 || key[i - 1] == '_')) first += key[i];
  return first;
}

}  // namespace

std::string Location::text() const {
  if (file.empty()) return "command line";
  return line > 0 ? fmt::format("{}:{}", file, line) : file;
}

void fail(const Location& where, std::string_view key, std::string_view message) {
  if (key.empty()) throw ConfigError(fmt::format("{}: {}", where.text(), message));
  throw ConfigError(fmt::format("{}: {}: {}", where.text(), key, message));
}

std::string near_match(std::string_view key, const std::vector<std::string>& candidates) {
  const auto has = [&](std::string_view name) {
    return std::find(candidates.begin(), candidates.end(), name) != candidates.end();
  };
  const auto [first, last] = kOtherNames.equal_range(key);
  for (auto other = first; other != last; ++other)
    if (has(other->second)) return std::string(other->second);
  const std::size_t allowed = key.size() < 3 ? 1 : std::max<std::size_t>(1, key.size() / 3);
  std::string best;
  std::size_t least = allowed + 1;
  for (const auto& candidate : candidates)
    if (const auto edits = distance(key, candidate); edits < least && edits < candidate.size())
      least = edits, best = candidate;
  if (!best.empty()) return best;
  for (const auto& candidate : candidates)
    if (candidate.size() > 1 && initials(key) == candidate) return candidate;
  for (const auto& candidate : candidates)  // lr_peak -> lr would be too bold a guess, hidden -> hidden_size is not
    if (key.size() > 3 && candidate.size() > 3 &&
        (candidate.find(key) != std::string::npos || key.find(candidate) != std::string_view::npos))
      return candidate;
  return "";
}

std::string did_you_mean(std::string_view key, const std::vector<std::string>& candidates) {
  const std::string match = near_match(key, candidates);
  return match.empty() ? "" : fmt::format(" (did you mean '{}'?)", match);
}

}  // namespace cairn::config
