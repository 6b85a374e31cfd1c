#include "trainer/timeline.h"

#include <algorithm>
#include <set>
#include <sstream>

#include "checkpoints/file.h"
#include "checkpoints/journal.h"
#include "trainer/environment.h"
#include "trainer/run_files.h"

namespace cairn {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

// The text of the JSON value at the beginning of `text`; empty where it does not end.
std::string_view value_text(std::string_view text) {
  int depth = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c == '\\') ++i;
      quoted = c != '"';
    } else if (c == '"') {
      quoted = true;
    } else if (c == '{' || c == '[') {
      ++depth;
    } else if (c == '}' || c == ']') {
      if (--depth == 0) return text.substr(0, i + 1);
    }
  }
  return {};
}

// An object or array of a journal line, parsed alone; null where the line has none. `marker`: "\"events\":".
Json member(std::string_view line, std::string_view marker) {
  const size_t at = line.find(marker);
  if (at == std::string_view::npos) return nullptr;
  const std::string_view text = value_text(line.substr(at + marker.size()));
  return text.empty() ? Json() : Json::parse(text.begin(), text.end(), nullptr, false);
}

void read_lines(Timeline& t) {
  const fs::path path = t.run / "journal.jsonl";
  const auto index = checkpoints::index_journal(path);
  t.torn = index.torn;
  if (index.lines.empty()) return;
  t.steps = index.lines.back().step;
  const std::string text = checkpoints::read_file(path);
  if (text.size() < index.bytes)
    throw std::runtime_error(fmt::format("{}: it was cut while it was read: try again", path.string()));
  std::vector<double> seconds;
  Unverified bare;
  const auto end_bare = [&] {
    if (bare.from > 0) t.unverified.push_back(bare);
    bare = {};
  };
  for (size_t i = 0; i < index.lines.size(); ++i) {
    const auto& place = index.lines[i];
    const std::string_view line(text.data() + place.offset, place.length);
    for (const Json& event : member(line, "\"events\":")) {
      if (!event.is_object()) continue;
      Json with_step{{"step", place.step}};
      with_step.update(event);
      t.events.push_back(with_step);
    }
    const Json eval = member(line, "\"eval\":");
    for (const auto& [set, values] : eval.items()) {
      const Json nll = values.value("nll", Json()), bits = values.value("bits_per_byte", Json());
      if (nll.is_number())
        t.validation[set].push_back({place.step, nll.get<double>(), bits.is_number() ? bits.get<double>() : 0});
    }
    if (line.find("\"digest\":\"") == std::string_view::npos) {
      if (bare.from == 0) bare = {place.step, place.step, "the journal has no digest of them, nor of a later step"};
      bare.to = place.step;
    } else {
      bare = {};  // a digest speaks of the steps that led to it, too
    }
    if (i + 20 >= index.lines.size()) {  // how long a step takes, by the last ones
      t.last = Json::parse(line);
      t.last.erase("crc");
      if (const Json& s = t.last.value("seconds", Json()); s.is_number() && s.get<double>() > 0)
        seconds.push_back(s.get<double>());
    }
  }
  end_bare();
  if (!seconds.empty()) {
    std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
    t.step_seconds = seconds[seconds.size() / 2];
  }
}

void read_stages(Timeline& t) {
  int64_t from = 1;
  for (const Json& stage : t.build.value("settings", Json::object()).value("stages", Json::array())) {
    const int64_t steps = stage.value("steps", int64_t{0});
    t.stages.push_back({{"name", stage.value("name", "")}, {"from", from}, {"to", from + steps - 1}});
    from += steps;
  }
}

bool is_run(const fs::path& path) { return fs::exists(path / "run.yaml"); }

// A path of another run as build.json or forks.jsonl has it: absolute, or seen from here or from the run's folder.
fs::path other_run(const fs::path& run, const std::string& path) {
  if (is_run(path)) return path;
  const fs::path beside = (run / path).lexically_normal();
  return is_run(beside) ? beside : fs::path(path);
}

// States of `run` up to step `limit` that a replay can begin from, and those of the run that it was forked from.
void collect_bases(const fs::path& run, const Json& build, const std::vector<checkpoints::StoredStep>& stored,
                   int64_t limit, std::set<int64_t>& bases, int depth = 0) {
  for (const auto& step : stored) {
    const auto& files = step.manifest.files;
    const bool whole =
        std::any_of(files.begin(), files.end(), [](const auto& f) { return f.path == "training/state.json"; });
    if (whole && step.step <= limit) bases.insert(step.step);
  }
  const Json parent = build.value("parent", Json());
  if (!parent.is_object()) {
    // The initialisation can be made again, unless it was weights (a folder, RUN@STEP) that have gone.
    const Json from = build.value("settings", Json::object()).value("model", Json::object()).value("from", Json());
    const std::string origin = from.is_string() ? from.get<std::string>() : "";
    if (origin.empty() || fs::exists(origin) || fs::exists(origin.substr(0, origin.rfind('@')))) bases.insert(0);
    return;
  }
  const fs::path above = other_run(run, parent.value("run", ""));
  if (depth > 64 || !is_run(above)) return;
  collect_bases(above, read_build(above), checkpoints::Store(above, checkpoints::Store::Mode::read).list(),
                std::min(limit, parent.value("step", int64_t{0})), bases, depth + 1);
}

// Where replays begin, and how far an address may be from there.
void find_range(Timeline& t) {
  std::set<int64_t> bases;
  collect_bases(t.run, t.build, t.stored, t.steps, bases);
  t.bases.assign(bases.begin(), bases.end());
  t.first = t.bases.empty() ? 0 : t.bases.front();
  for (size_t i = 0; i < t.bases.size(); ++i) {
    const int64_t next = i + 1 < t.bases.size() ? t.bases[i + 1] - 1 : t.steps;
    t.longest_replay = std::max(t.longest_replay, next - t.bases[i]);
  }
}

// Stretches of steps that a machine unlike this one made.
void find_other_machines(Timeline& t) {
  if (t.build.empty() || t.steps == 0) return;
  const Json here = build_info();
  std::vector<int64_t> begins{0};
  for (const Json& entry : t.build.value("machines", Json::array()))
    begins.push_back(entry.value("after_step", int64_t{0}));
  for (size_t i = 0; i < begins.size(); ++i) {
    const int64_t to = i + 1 < begins.size() ? std::min(begins[i + 1], t.steps) : t.steps;
    const int64_t from = begins[i] + 1;
    if (from > to) continue;
    const auto differences = machine_differences(machine_after(t.build, begins[i]), here, true);
    if (!differences.empty())
      t.unverified.push_back(
          {from, to, fmt::format("another machine made them (here {})", fmt::join(differences, "; "))});
  }
}

std::string identity(const fs::path& run) { return fs::weakly_canonical(run).string(); }

std::vector<Relative> children_of(const fs::path& run, std::set<std::string> seen) {
  std::vector<Relative> children;
  if (!seen.insert(identity(run)).second || !fs::exists(run / "forks.jsonl")) return children;
  std::istringstream lines(checkpoints::read_file(run / "forks.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const Json fork = Json::parse(line, nullptr, false);
    if (!fork.is_object()) continue;  // torn
    const fs::path child = other_run(run, fork.value("run", ""));
    Relative relative{
        .run = child.string(), .at = fork.value("step", int64_t{0}), .found = is_run(child), .children = {}};
    if (relative.found) relative.children = children_of(child, seen);
    children.push_back(std::move(relative));
  }
  return children;
}

void read_family(Timeline& t) {
  std::set<std::string> seen{identity(t.run)};
  fs::path run = t.run;
  Json build = t.build;
  while (build.value("parent", Json()).is_object()) {
    const Json parent = build.at("parent");
    const fs::path above = other_run(run, parent.value("run", ""));
    const bool found = is_run(above);
    t.ancestors.insert(
        t.ancestors.begin(),
        Relative{.run = above.string(), .at = parent.value("step", int64_t{0}), .found = found, .children = {}});
    if (!found || !seen.insert(identity(above)).second) break;
    run = above;
    build = read_build(above);
  }
  t.children = children_of(t.run, {});
}

}  // namespace

Timeline read_timeline(const fs::path& run) {
  Timeline t;
  t.run = run;
  t.build = read_build(run);
  read_lines(t);
  t.stored = checkpoints::Store(run, checkpoints::Store::Mode::read).list(&t.damaged);
  read_stages(t);
  find_range(t);
  find_other_machines(t);
  read_family(t);
  return t;
}

}  // namespace cairn
