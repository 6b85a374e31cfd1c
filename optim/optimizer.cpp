#include "optim/optimizer.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>

#include "optim/makers.h"

namespace cairn::optim {
namespace {

struct Row {
  const char* name;
  std::unique_ptr<Optimizer> (*make)(const OptimizerOptions&, std::vector<Parameter>);
  OptimizerOptions defaults;
};

const std::vector<Row>& table() {
  static const std::vector<Row> rows = {
      {"adamw", make_adamw, {.name = "adamw", .lr = 1e-3}},
      {"muon", make_muon, {.name = "muon", .lr = 1e-3, .momentum = 0.95, .nesterov = true}},
      {"sgd", make_sgd, {.name = "sgd", .lr = 1e-3, .weight_decay = 0.0, .momentum = 0.0, .nesterov = false}},
  };
  return rows;
}

const Row& row(const std::string& name) {
  for (const Row& row : table())
    if (name == row.name) return row;
  throw std::invalid_argument(
      fmt::format("optim.name: unknown optimizer '{}' (there are {})", name, fmt::join(optimizer_names(), ", ")));
}

void require(bool good, const char* key, const std::string& found, const char* expected) {
  if (!good) throw std::invalid_argument(fmt::format("optim.{}: {} is not {}", key, found, expected));
}

void check(const OptimizerOptions& o) {
  const auto text = [](double value) { return fmt::format("{}", value); };
  require(o.betas.size() == 2, "betas", fmt::format("a list of {}", o.betas.size()), "a pair");
  for (double beta : o.betas) require(beta >= 0 && beta < 1, "betas", text(beta), "in [0, 1)");
  require(o.eps >= 0 && std::isfinite(o.eps), "eps", text(o.eps), "zero or positive");
  require(o.weight_decay >= 0 && std::isfinite(o.weight_decay), "weight_decay", text(o.weight_decay),
          "zero or positive");
  require(o.momentum >= 0 && o.momentum < 1, "momentum", text(o.momentum), "in [0, 1)");
  require(o.name != "sgd" || !o.nesterov || o.momentum > 0, "nesterov", "true with momentum 0",
          "possible: give a positive momentum");
  require(o.ns_steps >= 1 && o.ns_steps < 100, "ns_steps", fmt::format("{}", o.ns_steps), "in 1..99");
  require(o.ns_coefficients.size() == 3, "ns_coefficients", fmt::format("a list of {}", o.ns_coefficients.size()),
          "three numbers");
  require(o.ns_eps > 0, "ns_eps", text(o.ns_eps), "positive");
  require(o.adjust_lr_fn == "original" || o.adjust_lr_fn == "match_rms_adamw", "adjust_lr_fn",
          "'" + o.adjust_lr_fn + "'", "one of original, match_rms_adamw");
  require(o.adamw_lr_factor >= 0 && std::isfinite(o.adamw_lr_factor), "adamw_lr_factor", text(o.adamw_lr_factor),
          "zero or positive");
  for (const auto& role : o.decay_roles) role_from_name(role);
}

}  // namespace

std::vector<std::string> optimizer_names() {
  std::vector<std::string> names;
  for (const Row& row : table()) names.emplace_back(row.name);
  return names;
}

OptimizerOptions defaults(const std::string& name) { return row(name).defaults; }

std::unique_ptr<Optimizer> make_optimizer(const OptimizerOptions& options, std::vector<Parameter> parameters) {
  const Row& found = row(options.name);
  check(options);
  return found.make(options, std::move(parameters));
}

}  // namespace cairn::optim
