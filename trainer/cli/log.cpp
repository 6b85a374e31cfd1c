#include <iterator>

#include "trainer/cli/cli.h"
#include "trainer/console.h"
#include "trainer/run_files.h"
#include "trainer/timeline.h"

namespace cairn::cli {
namespace {

using Json = nlohmann::ordered_json;

Json family_json(const std::vector<Relative>& relatives, bool deep) {
  Json list = Json::array();
  for (const auto& r : relatives) {
    list.push_back({{"run", r.run}, {"step", r.at}, {"found", r.found}});
    if (deep) list.back()["children"] = family_json(r.children, true);
  }
  return list;
}

Json timeline_json(const Timeline& t) {
  Json out{{"steps", t.steps}, {"checkpoints", Json::array()}};
  for (const auto& s : t.stored) {
    out["checkpoints"].push_back({{"step", s.step},
                                  {"kind", s.manifest.about.value("kind", "")},
                                  {"bytes", s.manifest.bytes()},
                                  {"digest", s.manifest.about.value("digest", "")}});
    if (s.manifest.about.contains("metrics")) out["checkpoints"].back()["metrics"] = s.manifest.about.at("metrics");
  }
  for (const auto& d : t.damaged) out["damaged"].push_back({{"step", d.step}, {"fault", d.fault.message()}});
  out["range"] = {{"from", t.first}, {"to", t.steps}, {"replay_from", t.bases}, {"longest_replay", t.longest_replay}};
  out["depends_on"] = t.build.value("depends_on", Json::array());
  out["unverified"] = Json::array();
  for (const auto& u : t.unverified) out["unverified"].push_back({{"from", u.from}, {"to", u.to}, {"why", u.why}});
  out["events"] = t.events;
  out["stages"] = t.stages;
  for (const char* key : {"resumptions", "machines", "changes"}) out[key] = t.build.value(key, Json::array());
  out["validation"] = Json::object();
  for (const auto& [set, values] : t.validation) {
    for (const auto& v : values)
      out["validation"][set].push_back({{"step", v.step}, {"nll", v.nll}, {"bits_per_byte", v.bits_per_byte}});
  }
  out["family"] = {{"parent", t.build.value("parent", Json())},
                   {"ancestors", family_json(t.ancestors, false)},
                   {"children", family_json(t.children, true)}};
  out["torn"] = t.torn;
  return out;
}

// One line of the time line; `order` among those of one step.
struct Row {
  int64_t step = 0;
  int order = 0;
  std::string what, text;
};

std::string plain(const Json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

// "threshold 3.2, action skip"
std::string rest_of(const Json& object, std::initializer_list<const char*> without) {
  std::vector<std::string> parts;
  for (const auto& [key, value] : object.items()) {
    if (std::find(without.begin(), without.end(), key) == without.end())
      parts.push_back(fmt::format("{} {}", key, plain(value)));
  }
  return fmt::format("{}", fmt::join(parts, ", "));
}

std::vector<Row> rows_of(const Timeline& t) {
  std::vector<Row> rows;
  for (const Json& stage : t.stages)
    rows.push_back({stage.at("from").get<int64_t>(), 0, "stage",
                    fmt::format("{}, to step {}", plain(stage.at("name")), stage.at("to").get<int64_t>())});
  for (const Json& event : t.events)
    rows.push_back(
        {event.at("step").get<int64_t>(), 1, event.value("event", "event"), rest_of(event, {"step", "event"})});
  for (const auto& s : t.stored) {
    const Json& about = s.manifest.about;
    rows.push_back({s.step, 2, "checkpoint",
                    fmt::format("{:<5} {:>8}B  {}{}", about.value("kind", "?"), count(s.manifest.bytes()),
                                about.value("digest", "no digest"),
                                s.metric(kMeanLoss) ? fmt::format("  validation {:.4f}", *s.metric(kMeanLoss)) : "")});
  }
  for (const auto& d : t.damaged) rows.push_back({d.step, 2, "damaged", d.fault.message()});
  if (!t.ancestors.empty())
    rows.push_back({t.ancestors.back().at, 3, "forked", fmt::format("from {}", t.ancestors.back().run)});
  for (const auto& child : t.children) rows.push_back({child.at, 3, "fork", child.run});
  for (const Json& r : t.build.value("resumptions", Json::array()))
    rows.push_back({r.value("after_step", int64_t{0}), 4, "resumed", r.value("time", "")});
  Json before = t.build;
  for (const Json& m : t.build.value("machines", Json::array())) {
    std::vector<std::string> parts;
    for (const auto& [key, value] : m.items()) {
      if (key != "after_step" && before.value(key, Json()) != value)
        parts.push_back(fmt::format("{} {} (was {})", key, plain(value), plain(before.value(key, Json()))));
    }
    rows.push_back({m.value("after_step", int64_t{0}), 5, "machine", fmt::format("{}", fmt::join(parts, ", "))});
    before = m;
  }
  for (const Json& c : t.build.value("changes", Json::array())) {
    rows.push_back({c.value("after_step", int64_t{0}), 6, "changed",
                    fmt::format("{} {} (was {})", c.value("key", "?"), plain(c.value("now", Json())),
                                plain(c.value("was", Json())))});
  }
  std::stable_sort(rows.begin(), rows.end(),
                   [](const Row& a, const Row& b) { return a.step != b.step ? a.step < b.step : a.order < b.order; });
  return rows;
}

// Of many rows of one sort in a row the first and the last ones.
void print_rows(const std::vector<Row>& rows, bool all) {
  constexpr size_t kShown = 3;
  for (size_t i = 0; i < rows.size();) {
    size_t end = i;
    while (end < rows.size() && rows[end].what == rows[i].what) ++end;
    for (size_t k = i; k < end; ++k) {
      if (!all && end - i > 2 * kShown + 1 && k == i + kShown) {
        fmt::print("         …  {} more to step {} (--all shows them)\n", end - i - 2 * kShown,
                   rows[end - kShown - 1].step);
        k = end - kShown;
      }
      fmt::print("  {:>8}  {:<10}  {}\n", rows[k].step, rows[k].what, rows[k].text);
    }
    i = end;
  }
}

void print_relatives(const std::vector<Relative>& children, const std::string& indent) {
  for (const auto& child : children) {
    fmt::print("{}@{} → {}{}\n", indent, child.at, child.run, child.found ? "" : "  (not there)");
    print_relatives(child.children, indent + "  ");
  }
}

void print_family(const Timeline& t) {
  if (t.ancestors.empty() && t.children.empty()) return;
  fmt::print("\nfamily\n");
  std::string indent = "  ";
  std::string arrow;
  for (const auto& above : t.ancestors) {
    fmt::print("{}{}{}{}\n", indent, arrow, above.run, above.found ? "" : "  (not there)");
    indent += "  ";
    arrow = fmt::format("@{} → ", above.at);
  }
  fmt::print("{}{}{}  (this run)\n", indent, arrow, t.run.string());
  print_relatives(t.children, indent + "  ");
}

void print_range(const Timeline& t, const std::string& run) {
  if (t.bases.empty()) {
    fmt::print("addressable  nothing: no checkpoint is stored, and the weights that the run began with have gone\n");
    return;
  }
  std::string line =
      fmt::format("addressable  {0}@{1} to {0}@{2}: {3} stored", run, t.bases.front(), t.steps, t.stored.size());
  if (t.longest_replay > 0) {
    line += fmt::format(
        "; the others are replayed from the stored one before{}, at most {} step{}{}",
        t.bases.front() == 0 ? " or from the initialisation" : "", t.longest_replay, t.longest_replay == 1 ? "" : "s",
        t.step_seconds * static_cast<double>(t.longest_replay) >= 1
            ? fmt::format(" (about {})", duration(t.step_seconds * static_cast<double>(t.longest_replay)))
            : "");
  }
  fmt::print("{}\n", line);
  for (const Json& what : t.build.value("depends_on", Json::array()))
    fmt::print("digests      depend on {}: replay with as many as build.json has\n", what.get<std::string>());
  for (const auto& u : t.unverified) fmt::print("unverified   steps {} to {}: {}\n", u.from, u.to, u.why);
}

void print_timeline(const Timeline& t, const std::string& run, bool all) {
  const Json settings = t.build.value("settings", Json::object());
  const Json model = settings.value("model", Json::object());
  double bytes = 0;
  for (const auto& s : t.stored) bytes += static_cast<double>(s.manifest.bytes());
  std::string head = fmt::format("{}: {} steps, {} checkpoint{} ({}B)", run, t.steps, t.stored.size(),
                                 t.stored.size() == 1 ? "" : "s", count(bytes));
  if (model.contains("model_type")) head += fmt::format(" · {}", plain(model.at("model_type")));
  if (settings.contains("objective")) head += fmt::format(" · {}", plain(settings.at("objective")));
  if (t.last.is_object() && t.last.value("tokens", Json()).is_number())
    head += fmt::format(" · {} tokens", count(t.last.at("tokens").get<double>()));
  if (t.last.is_object() && t.last.value("loss", Json()).is_number())
    head += fmt::format(" · loss {:.4f}", t.last.at("loss").get<double>());
  fmt::print("{}\n", head);
  if (t.build.contains("processor")) {
    fmt::print("began {}on {}, {} thread(s), {}, torch {}\n",
               t.build.contains("started") ? plain(t.build.at("started")) + " " : "", plain(t.build.at("processor")),
               plain(t.build.value("threads", Json())), plain(t.build.value("program", Json())),
               plain(t.build.value("torch", Json())));
  }
  if (model.value("from", Json()).is_string()) fmt::print("starts from the weights of {}\n", plain(model.at("from")));
  if (t.torn) fmt::print("the last line of the journal is torn and is dropped\n");
  fmt::print("\n");
  print_rows(rows_of(t), all);
  fmt::print("\n");
  for (const auto& [set, values] : t.validation) {
    const auto best =
        std::min_element(values.begin(), values.end(), [](const auto& a, const auto& b) { return a.nll < b.nll; });
    fmt::print("{}: {:.4f} nats a token, {:.3f} bits a byte at step {}; best {:.4f} at step {}\n", set,
               values.back().nll, values.back().bits_per_byte, values.back().step, best->nll, best->step);
  }
  print_range(t, run);
  print_family(t);
}

}  // namespace

Action log_verb(CLI::App& command) {
  struct Options {
    std::string run;
    bool json = false, all = false;
  };
  auto o = std::make_shared<Options>();
  command.add_option("run", o->run, "the run's folder")->required();
  command.add_flag("--all", o->all, "every row of the time line, where there are many");
  command.add_flag("--json", o->json,
                   "{\"steps\", \"checkpoints\": [{\"step\", \"kind\", \"bytes\", \"digest\"}], \"range\", "
                   "\"depends_on\", \"unverified\", \"events\", \"stages\", \"resumptions\", \"machines\", \"changes\", "
                   "\"validation\", \"family\"}");
  return [o] {
    if (!std::filesystem::exists(std::filesystem::path(o->run) / "run.yaml"))
      throw UsageError(fmt::format("{}: no run here (no run.yaml)", o->run));
    const Timeline timeline = read_timeline(o->run);
    if (o->json) {
      fmt::print("{}\n", timeline_json(timeline).dump());
    } else {
      print_timeline(timeline, o->run, o->all);
    }
    return 0;
  };
}

}  // namespace cairn::cli
