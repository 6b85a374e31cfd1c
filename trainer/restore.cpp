#include "trainer/restore.h"

#include "checkpoints/journal.h"

namespace cairn {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

// The folder to load; empty: there is none.
std::string newest_folder(const checkpoints::Store& store, Console& console) {
  const fs::path& run = store.run();
  const auto index = checkpoints::index_journal(run / "journal.jsonl");
  const int64_t known = index.lines.empty() ? 0 : index.lines.back().step;
  if (const auto stored = store.list(); !stored.empty() && stored.back().step > known) {
    throw std::runtime_error(fmt::format(
        "{}: the journal ends at step {}, but checkpoints up to step {} are stored: put journal.jsonl back, or "
        "start a new run from {} (model.from)",
        run.string(), known, stored.back().step, stored.back().path.string()));
  }
  const auto newest = store.newest_valid(known);
  for (const auto& damaged : newest.damaged) {
    console.warn(fmt::format("checkpoint step {} is damaged ({}): going back to {}", damaged.step,
                             damaged.fault.message(),
                             newest.step ? fmt::format("step {}", newest.step->step) : "the initialisation"));
  }
  return newest.step ? newest.step->path.string() : "";
}

bool ended(const Json& line) {
  for (const Json& event : line.value("events", Json::array())) {
    if (event.value("action", "") == "stop") return true;
  }
  return false;
}

}  // namespace

Restored restore(Stepper& stepper, const checkpoints::Store& store, parallel::World& world, Console& console) {
  Restored restored;
  const std::string folder = world.broadcast(world.is_first() ? newest_folder(store, console) : "");
  if (folder.empty()) {
    stepper.initialise();
  } else {
    restored.loaded = true;
    restored.elapsed = stepper.load(folder).at("elapsed").get<double>();
  }
  for (const Json& line : checkpoints::read_journal(store.run() / "journal.jsonl")) {
    const auto n = line.at("step").get<int64_t>();
    if (n > stepper.step()) {
      const Json digest = line.value("digest", Json());
      if (!ended(line) && digest.is_string()) restored.digests[n] = digest.get<std::string>();
      continue;
    }
    if (line.at("loss").is_number()) restored.last_loss = line.at("loss").get<double>();
    stepper.remember(line);
  }
  world.barrier();
  return restored;
}

}  // namespace cairn
