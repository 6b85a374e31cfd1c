#include "trainer/config/run_config.h"

#include <fmt/format.h>

#include <algorithm>

#include "trainer/config/reader.h"
#include "trainer/config/resolve.h"
#include "trainer/config/rl_reader.h"
#include "trainer/config/visit.h"

namespace cairn::config {
namespace {

void collect(const Tree& tree, const std::string& path, std::map<std::string, Location>& locations) {
  for (const auto& entry : tree.entries) {
    const std::string key = path.empty() ? entry.key : path + "." + entry.key;
    locations[key] = entry.where;
    collect(entry.value, key, locations);
  }
  for (std::size_t i = 0; i < tree.items.size(); ++i) {
    const std::string key = fmt::format("{}.{}", path, i);
    locations[key] = tree.items[i].where;
    collect(tree.items[i], key, locations);
  }
}

// SGD starts from what is usual for it: the decay is an L2 penalty there, and 0.95 is Muon's momentum.
void defaults_of_optimizer(const Tree& tree, OptimOptions& optim) {
  const auto* section = tree.find("optim");
  const auto* name = section ? section->value.find("name") : nullptr;
  if (name && name->value.scalar == "sgd") optim.weight_decay = 0.0, optim.momentum = 0.9, optim.nesterov = false;
}

// Examples that share a row never see one another.
void defaults_of_objective(const Tree& tree, DataOptions& data) {
  const auto* objective = tree.find("objective");
  if (objective && objective->value.scalar == "sft") data.mask_documents = true;
}

RunConfig resolve(Tree tree, const std::vector<std::string>& overrides) {
  if (!tree.is_map() && !tree.is_null())
    fail(tree.where, "", fmt::format("found {}, expected keys with values", tree.found()));
  // An override that names a file to include takes the place of the file's own; the others lie over what was included.
  for (const auto& assignment : overrides)
    if (override_includes(assignment)) apply_override(tree, assignment);
  expand(tree);
  for (const auto& assignment : overrides)
    if (!override_includes(assignment)) apply_override(tree, assignment);

  RunConfig config;
  config.locations[""] = tree.where;
  collect(tree, "", config.locations);
  defaults_of_optimizer(tree, config.optim);
  defaults_of_objective(tree, config.data);
  Reader reader(tree, "", {"stages"});
  visit(reader, config);
  reader.finish();
  resolve_model_address(config);
  resolve_paths(config, "", config.data);
  resolve_stages(tree, config);
  if (config.objective == "grpo") {
    const auto locate = [&](const std::string& section) {
      return [&config, section](const std::string& key) { return config.locate(section + "." + key); };
    };
    check_task(config.task, "task", locate("task"));
    check_rewards(config.rewards, "rewards", locate("rewards"));
  }
  check_run(config);
  return config;
}

}  // namespace

const Stage& RunConfig::stage_of(int64_t step) const {
  for (const auto& stage : stages)
    if (!stage.steps || step <= stage.first + *stage.steps) return stage;
  return stages.back();
}

std::optional<int64_t> RunConfig::total_steps() const {
  if (staged) return stages.back().first + *stages.back().steps;
  std::optional<int64_t> total = train.steps;
  if (train.tokens) {
    const int64_t each = int64_t{train.batch} * data.context;
    const int64_t needed = (*train.tokens + each - 1) / each;
    total = total ? std::min(*total, needed) : needed;
  }
  return total;
}

Location RunConfig::locate(std::string_view key) const {
  for (std::string_view at = key;; at = at.substr(0, at.rfind('.'))) {
    if (const auto found = locations.find(std::string(at)); found != locations.end()) return found->second;
    if (at.find('.') == std::string_view::npos) break;
  }
  const auto top = locations.find("");
  return top == locations.end() ? Location{} : top->second;
}

void RunConfig::fail(std::string_view key, std::string_view message) const { config::fail(locate(key), key, message); }

bool RunConfig::operator==(const RunConfig& other) const {
  return std::tie(objective, seed, model, data, optim, indexer, experts, train, checkpoints, trajectory, eval, parallel,
                  metrics, rl, rollout, task, rewards, stages, staged) ==
         std::tie(other.objective, other.seed, other.model, other.data, other.optim, other.indexer, other.experts,
                  other.train, other.checkpoints, other.trajectory, other.eval, other.parallel, other.metrics, other.rl,
                  other.rollout, other.task, other.rewards, other.stages, other.staged);
}

RunConfig load(const std::filesystem::path& file, const std::vector<std::string>& overrides) {
  return resolve(read_yaml(file), overrides);
}

RunConfig parse(const std::string& yaml, const std::string& name, const std::vector<std::string>& overrides) {
  return resolve(parse_yaml(yaml, name), overrides);
}

}  // namespace cairn::config
