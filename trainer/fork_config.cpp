#include "trainer/fork_config.h"

#include <fmt/format.h>

#include <algorithm>

namespace cairn {
namespace {

using config::Json;

// Keys that hold from the fork's step on.
constexpr const char* kStaged[] = {"data.train",  "data.context",      "data.mask_documents",
                                   "train.batch", "train.micro_batch", "optim.schedule"};

std::string key_of(const std::string& change) { return change.substr(0, change.find('=')); }

bool is_staged_key(const std::string& key) {
  return std::any_of(std::begin(kStaged), std::end(kStaged),
                     [&](const std::string& staged) { return key == staged || key.starts_with(staged + "."); });
}

bool changes_schedule(const std::vector<std::string>& changes) {
  return std::any_of(changes.begin(), changes.end(),
                     [](const auto& change) { return key_of(change).starts_with("optim.schedule"); });
}

// A source that reads another file is another source: the name that its old path gave goes.
void forget_names(Json& train, const std::vector<std::string>& changes) {
  for (size_t i = 0; i < train.size(); ++i) {
    const std::string own = fmt::format("data.train.{}.", i);
    const auto names = [&](std::initializer_list<const char*> keys) {
      return std::any_of(changes.begin(), changes.end(), [&](const std::string& change) {
        return std::any_of(keys.begin(), keys.end(), [&](const char* key) { return key_of(change) == own + key; });
      });
    };
    if (names({"text", "jsonl", "shards"}) && !names({"name"})) train[i].erase("name");
  }
}

// What the data order hangs on.
bool same_order(const config::Stage& a, const config::Stage& b) {
  return a.data.train == b.data.train && a.data.context == b.data.context &&
         a.data.mask_documents == b.data.mask_documents && a.train.batch == b.train.batch;
}

// The steps that were made keep their order.
void check_past(const config::RunConfig& parent, const config::RunConfig& child, int64_t step) {
  for (int64_t n = 1; n <= step;) {
    const config::Stage &was = parent.stage_of(n), &now = child.stage_of(n);
    if (!same_order(was, now))
      child.fail("data", fmt::format("found other data for step {}, which the parent has made: a fork at step {} gives "
                                     "data.train, data.context and train.batch key by key, without sections or stages",
                                     n, step));
    const auto end = [](const config::Stage& stage) { return stage.steps ? stage.first + *stage.steps : INT64_MAX; };
    n = std::min(end(was), end(now));
    if (n == INT64_MAX) return;
    n += 1;
  }
}

Json stage_item(const config::Stage& stage, const Json& full, const std::string& name, int64_t steps) {
  Json item{{"name", name}, {"steps", steps}};
  item.update(stage.overrides);
  for (const char* key : {"train", "context", "mask_documents"}) item["data"][key] = full.at("data").at(key);
  for (const char* key : {"batch", "micro_batch"}) item["train"][key] = full.at("train").at(key);
  return item;
}

// The effective data of a stage as JSON: what its overrides say, else the run's.
Json effective(const Json& run, const config::Stage& stage) {
  Json full = run;
  for (const char* section : {"data", "train"}) {
    if (stage.overrides.contains(section)) full[section].update(stage.overrides.at(section));
  }
  return full;
}

}  // namespace

config::RunConfig fork_config(const Json& parent_json, int64_t step, std::optional<int64_t> last,
                              const std::vector<std::string>& changes, const std::string& name) {
  const config::RunConfig parent = config::parse(parent_json.dump(), name);
  Json base = parent_json;
  forget_names(base["data"]["train"], changes);
  // Also where it is not what comes of it: this names what is wrong with a change.
  const config::RunConfig plain = config::parse(base.dump(), name, changes);
  if (plain.data.tokenizer != parent.data.tokenizer)
    plain.fail("data.tokenizer", "found another tokenizer, expected the parent's: the ids would change their meaning");

  const bool staged = step > 0 && std::any_of(changes.begin(), changes.end(),
                                              [](const auto& change) { return is_staged_key(key_of(change)); });
  if (!staged) {
    check_past(parent, plain, step);
    return plain;
  }

  const auto& ends = plain.train;
  const bool same_end =
      ends.steps == parent.train.steps && ends.tokens == parent.train.tokens && ends.epochs == parent.train.epochs;
  const std::optional<int64_t> end = same_end && !plain.staged ? last : plain.total_steps();
  if (!end)
    plain.fail("train.steps", "found no last step, which a fork with other data or schedule needs: give train.steps");
  if (*end <= step)
    plain.fail("train.steps", fmt::format("found {}, expected more than {}, where the fork begins", *end, step));

  Json items = Json::array();
  std::vector<size_t> after;
  for (size_t k = 0; k < parent.stages.size(); ++k) {
    const config::Stage& stage = parent.stages[k];
    const int64_t stage_end = k + 1 < parent.stages.size() ? stage.first + *stage.steps : *end;
    const bool split = stage.first < step && step < stage_end;
    const Json full = effective(parent_json, stage);
    if (split && parent.staged && stage.overrides.contains("optim") &&
        stage.overrides.at("optim").contains("schedule") && !changes_schedule(changes)) {
      plain.fail("optim.schedule",
                 fmt::format("found none, while stage '{}' has a schedule of its own that would begin again at step "
                             "{}: give optim.schedule.* for what follows, or fork at the stage's end",
                             stage.name, step));
    }
    if (stage.first < step)
      items.push_back(
          stage_item(stage, full, parent.staged ? stage.name : "before", std::min(stage_end, step) - stage.first));
    if (stage_end > step) {
      after.push_back(items.size());
      items.push_back(stage_item(stage, full, split || !parent.staged ? fmt::format("fork-{}", step) : stage.name,
                                 stage_end - std::max(stage.first, step)));
      forget_names(items.back()["data"]["train"], changes);
    }
  }
  Json tree = parent_json;
  tree["stages"] = items;
  for (const char* key : {"steps", "tokens", "epochs"}) tree["train"][key] = nullptr;
  std::vector<std::string> assignments;
  for (const std::string& change : changes) {
    const std::string key = key_of(change);
    if (key == "train.steps" || key == "train.tokens" || key == "train.epochs") continue;  // in the stages' steps
    if (!is_staged_key(key)) {
      assignments.push_back(change);
      continue;
    }
    for (size_t index : after) assignments.push_back(fmt::format("stages.{}.{}", index, change));
  }
  const config::RunConfig child = config::parse(tree.dump(), name, assignments);
  check_past(parent, child, step);
  return child;
}

}  // namespace cairn
