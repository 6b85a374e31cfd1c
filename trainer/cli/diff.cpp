#include "checkpoints/analysis/diff.h"
#include "checkpoints/gguf.h"

#include <set>

#include "trainer/address_parts.h"
#include "trainer/cli/cli.h"
#include "trainer/config/run_config.h"
#include "trainer/environment.h"
#include "trainer/model_io.h"

namespace cairn::cli {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
using checkpoints::Difference;

struct Options {
  std::vector<std::string> models;
  bool config = false, all = false, exit_code = false, json = false;
  int threads = 0;
};

constexpr size_t kShown = 30;

Json number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

Json pair_json(const checkpoints::PairStatistics& p) {
  return {{"elements", p.count},
          {"differing", p.differing},
          {"norm_a", number(p.norm_a())},
          {"norm_b", number(p.norm_b())},
          {"norm_difference", number(p.norm_difference())},
          {"relative", number(p.relative())},
          {"cosine", number(p.cosine())},
          {"max_abs", number(p.max_abs)}};
}

Json json_of(const std::string& a, const std::string& b, const checkpoints::ModelDifference& d) {
  Json json{{"a", a},
            {"b", b},
            {"identical", d.identical()},
            {"equal", d.equal},
            {"changed", d.changed},
            {"dtype", d.dtypes},
            {"shape", d.shapes},
            {"only_a", d.only_a},
            {"only_b", d.only_b},
            {"total", pair_json(d.total)},
            {"tensors", Json::array()}};
  for (const auto& t : d.tensors) {
    Json row{{"name", t.name}, {"difference", checkpoints::difference_name(t.difference)}};
    if (!t.dtype_a.empty()) row["dtype_a"] = t.dtype_a, row["shape_a"] = t.shape_a;
    if (!t.dtype_b.empty()) row["dtype_b"] = t.dtype_b, row["shape_b"] = t.shape_b;
    if (t.compared) row.update(pair_json(t.pair));
    json["tensors"].push_back(row);
  }
  return json;
}

std::string side(const std::string& dtype, const std::vector<int64_t>& shape) {
  return dtype.empty() ? "missing" : fmt::format("{} [{}]", dtype, fmt::join(shape, ", "));
}

void print(const std::string& a, const std::string& b, const checkpoints::ModelDifference& d, bool all) {
  fmt::print("A {}\nB {}\n", a, b);
  std::string odd;
  const std::pair<int64_t, const char*> counts[] = {
      {d.dtypes, "of another type"}, {d.shapes, "of another shape"}, {d.only_a, "only in A"}, {d.only_b, "only in B"}};
  for (const auto& [n, what] : counts)
    if (n) odd += fmt::format(", {} {}", n, what);
  fmt::print("{} tensors: {} equal, {} changed{}\n", d.tensors.size(), d.equal, d.changed, odd);
  if (d.identical()) return;
  fmt::print("in all: |B-A|/|A| {:.4e}   cosine {:.8f}   max |B-A| {:.3e}   {} of {} elements differ\n\n",
             d.total.relative(), d.total.cosine(), d.total.max_abs, d.total.differing, d.total.count);
  size_t width = 6, shown = 0;
  for (const auto& t : d.tensors)
    if (t.difference != Difference::none) width = std::max(width, t.name.size());
  fmt::print("{:<{}}  {:>10}  {:>11}  {:>10}  {:>10}  {:>10}\n", "tensor", width, "|B-A|/|A|", "cosine", "max |B-A|",
             "|A|", "|B|");
  for (const auto& t : d.tensors) {
    if (t.difference == Difference::none && !all) continue;
    if (shown++ == kShown && !all) {
      fmt::print("... and {} more (--all)\n", static_cast<int64_t>(d.tensors.size()) - d.equal - kShown);
      break;
    }
    if (t.compared) {
      fmt::print("{:<{}}  {:>10.3e}  {:>11.8f}  {:>10.3e}  {:>10.4g}  {:>10.4g}{}\n", t.name, width, t.pair.relative(),
                 t.pair.cosine(), t.pair.max_abs, t.pair.norm_a(), t.pair.norm_b(),
                 t.difference == Difference::dtype ? fmt::format("  {} -> {}", t.dtype_a, t.dtype_b) : "");
    } else {
      fmt::print("{:<{}}  {}: A {}, B {}\n", t.name, width, checkpoints::difference_name(t.difference),
                 side(t.dtype_a, t.shape_a), side(t.dtype_b, t.shape_b));
    }
  }
}

// run.yaml of a run, the settings that made a step of it, or config.json of a model; flat keys "/optim/lr". No state is
// needed for that, and none is rebuilt.
struct ConfigOf {
  std::string file;
  bool is_run = false;
  Json flat;
};
ConfigOf config_of(const std::string& address) {
  const auto step_of = [](const fs::path& run, int64_t step) -> ConfigOf {
    const RunRecord record(run);
    check_reach(record, step);
    return {fmt::format("{}@{}", run.string(), step), true, record.settings_json(step).flatten()};
  };
  if (is_model(address)) {
    const Located located = locate(address);
    if (!located.run.empty() && fs::exists(located.run / "run.yaml")) return step_of(located.run, *located.step);
    const fs::path file = checkpoints::is_gguf(located.folder) ? located.folder : located.folder / "config.json";
    return {file.string(), false, read_model_config(located.folder.string()).flatten()};
  }
  const AddressParts parts = split_address(address);
  if (!parts.selector.empty()) return step_of(parts.run, selected_step(parts, address, {}));
  const fs::path file = parts.run / "run.yaml";
  return {file.string(), true, config::to_json(config::load(file)).flatten()};
}

int diff_configs(const Options& o) {
  if (o.models.size() != 2)
    throw UsageError(fmt::format("diff --config: found {} addresses, expected two", o.models.size()));
  const ConfigOf a = config_of(o.models[0]), b = config_of(o.models[1]);
  if (a.is_run != b.is_run)
    throw UsageError(fmt::format("diff --config: {} is a {}, {} is not: expected two runs or two models",
                                 (a.is_run ? a : b).file, "run's", (a.is_run ? b : a).file));
  std::set<std::string> keys;
  for (const auto& side : {a.flat, b.flat})
    for (const auto& [key, value] : side.items()) keys.insert(key);
  Json changes = Json::array();
  for (const std::string& key : keys) {
    const bool in_a = a.flat.contains(key), in_b = b.flat.contains(key);
    if (in_a && in_b && a.flat.at(key) == b.flat.at(key)) continue;
    std::string dotted = key.substr(1);
    std::replace(dotted.begin(), dotted.end(), '/', '.');
    Json row{{"key", dotted}};
    if (in_a) row["a"] = a.flat.at(key);
    if (in_b) row["b"] = b.flat.at(key);
    changes.push_back(row);
  }
  if (o.json) {
    fmt::print("{}\n", Json{{"a", a.file}, {"b", b.file}, {"identical", changes.empty()}, {"changes", changes}}.dump());
  } else {
    fmt::print("A {}\nB {}\n", a.file, b.file);
    if (changes.empty()) fmt::print("{} settings, all equal\n", keys.size());
    const auto text = [](const Json& row, const char* side) { return row.contains(side) ? row.at(side).dump() : "-"; };
    for (const Json& row : changes)
      fmt::print("{}: {} -> {}\n", row.at("key").get<std::string>(), text(row, "a"), text(row, "b"));
  }
  return o.exit_code && !changes.empty() ? 1 : 0;
}

int diff_weights(const Options& o) {
  set_threads(o.threads);
  std::vector<Located> states;
  for (const std::string& model : o.models)
    for (Located& one : locate_set(model, o.models.size() == 1)) states.push_back(std::move(one));
  if (states.size() < 2)
    throw UsageError(fmt::format("diff: found {} state, expected two addresses, or a set of several", states.size()));
  Json pairs = Json::array();
  bool identical = true;
  for (size_t i = 0; i + 1 < states.size(); ++i) {
    const Located &a = states[i], &b = states[i + 1];
    const auto d = checkpoints::compare(open_weights(a.folder), open_weights(b.folder));
    identical = identical && d.identical();
    if (o.json) {
      pairs.push_back(json_of(a.address, b.address, d));
    } else if (states.size() == 2 || o.all) {
      print(a.address, b.address, d, o.all);
    } else {
      fmt::print("{} -> {}: |B-A|/|A| {:.4e}  cosine {:.8f}  max |B-A| {:.3e}  {} of {} tensors differ\n", a.address,
                 b.address, d.total.relative(), d.total.cosine(), d.total.max_abs, d.tensors.size() - d.equal,
                 d.tensors.size());
    }
  }
  if (o.json) fmt::print("{}\n", states.size() == 2 ? pairs.front().dump() : Json{{"pairs", pairs}}.dump());
  return o.exit_code && !identical ? 1 : 0;
}

}  // namespace

Action diff_verb(CLI::App& command) {
  auto o = std::make_shared<Options>();
  command.add_option("models", o->models, "two addresses or folders; or a set: each state beside the one before it")
      ->required();
  command.add_flag("--config", o->config, "the settings of two runs, or config.json of two models");
  command.add_flag("--all", o->all, "every tensor, the equal ones too");
  command.add_flag("--exit-code", o->exit_code, "exit status 1 where anything differs");
  add_threads(command, o->threads);
  command.add_flag("--json", o->json, "totals and one entry a tensor, largest relative change first");
  return [o] { return o->config ? diff_configs(*o) : diff_weights(*o); };
}

}  // namespace cairn::cli
