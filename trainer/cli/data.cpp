#include <filesystem>

#include "trainer/cli/cli.h"
#include "trainer/console.h"
#include "trainer/data/prepare.h"
#include "trainer/data/show.h"
#include "trainer/past_data.h"
#include "trainer/setup.h"

namespace cairn::cli {
namespace {

struct Options {
  std::vector<std::string> sources;
  std::vector<std::string> names;
  std::string tokenizer, out, field = "text", separator, run, document;
  int threads = 0;
  bool json = false, text = false;
};

int prepare(const Options& o) {
  const auto tokenizer = data::Tokenizer::from_file(o.tokenizer);
  if (!o.names.empty() && o.names.size() != o.sources.size())
    throw UsageError(fmt::format("data prepare: found {} --name for {} sources, expected one for each", o.names.size(),
                                 o.sources.size()));
  std::vector<data::SourceOptions> sources;
  for (const std::string& path : o.sources) {
    data::SourceOptions source = data::source_of(path);
    if (!o.separator.empty() && source.text.empty())
      throw UsageError(
          fmt::format("data prepare: {}: --separator is for text; a line of JSON lines is a document", path));
    source.field = o.field;
    source.separator = o.separator;
    source.name = o.names.empty() ? data::default_name(source) : o.names[sources.size()];
    sources.push_back(source);
  }
  Console console(o.json);
  const auto done =
      data::prepare(sources, data::encoding_of(tokenizer), o.out, o.threads, [&](const data::Progress& p) {
        console.progress(fmt::format("{} {}: {:>3.0f}%  {} tokens", p.phase, p.source,
                                     p.total_bytes ? 100.0 * p.bytes / p.total_bytes : 0.0, count(p.tokens)));
      });
  auto out = nlohmann::ordered_json::array();
  for (const auto& p : done) {
    out.push_back({{"source", p.source},
                   {"folder", p.folder},
                   {"documents", p.documents},
                   {"tokens", p.tokens},
                   {"bytes", p.bytes},
                   {"seconds", p.seconds}});
    console.line(fmt::format("{}: {} documents, {} tokens from {} bytes in {:.1f} s -> {}", p.source, p.documents,
                             count(p.tokens), count(p.bytes), p.seconds, p.folder));
  }
  if (o.json) fmt::print("{}\n", out.dump());
  return 0;
}

// The data of a run, as its own loop opened them.
PastData open_run(const std::string& run) {
  if (!std::filesystem::exists(std::filesystem::path(run) / "run.yaml"))
    throw UsageError(fmt::format("{}: no run here (no run.yaml)", run));
  return PastData(run);
}

int show(const Options& o) {
  const size_t at = o.run.rfind('@');
  if (at == std::string::npos) throw UsageError(fmt::format("data show: found '{}', expected RUN@STEP", o.run));
  int64_t step = 0;
  try {
    size_t used = 0;
    step = std::stoll(o.run.substr(at + 1), &used);
    if (used != o.run.size() - at - 1) step = 0;
  } catch (const std::exception&) {
  }
  if (step < 1)
    throw UsageError(fmt::format("data show: '{}' is no step; step n (1 or more) turns state n-1 into state n",
                                 o.run.substr(at + 1)));
  PastData run = open_run(o.run.substr(0, at));
  const PastData::Opened& open = run.of(step);
  if (const auto last = last_step(open.config, *open.data); last && step > *last)
    throw UsageError(fmt::format("data show: found step {}, expected at most {}, the run's last", step, *last));
  const nlohmann::json shown = data::show(*open.data, step, o.text);
  fmt::print("{}", o.json ? shown.dump() + "\n" : data::show_text(shown));
  return 0;
}

bool has_source(const data::Dataset& data, const std::string& name) {
  for (int32_t i = 0; i < data.source_count(); ++i)
    if (data.source(i).name == name) return true;
  return false;
}

int where(const Options& o) {
  PastData run = open_run(o.run);
  auto stretches = run.stretches();
  if (stretches.empty()) stretches.push_back({1, 0, run.now().data.get()});
  // The newest settings know the most sources: they say which document is meant, and the older ones are asked for it.
  nlohmann::json found = data::where(*stretches.back().data, o.document, stretches.back().last);
  auto seen = nlohmann::json::array();
  for (const auto& stretch : stretches) {
    if (!has_source(*stretch.data, found.at("source").get<std::string>())) continue;
    const nlohmann::json part = data::where(*stretch.data, found.at("id").get<std::string>(), stretch.last);
    for (const auto& sighting : part.at("seen"))
      if (sighting.at("step").get<int64_t>() >= stretch.first) seen.push_back(sighting);
  }
  found["seen"] = seen;
  if (o.json) {
    fmt::print("{}\n", found.dump());
    return 0;
  }
  fmt::print("document {} ({} tokens) was seen {} times\n", found.at("id").get<std::string>(),
             found.at("tokens").get<int64_t>(), found.at("seen").size());
  for (const auto& s : found.at("seen")) {
    fmt::print("  step {:>6}  row {:>3}  epoch {}  tokens {}..{}\n", s.at("step").get<int64_t>(),
               s.at("row").get<int64_t>(), s.at("epoch").get<int64_t>(), s.at("offset").get<int64_t>(),
               s.at("offset").get<int64_t>() + s.at("tokens").get<int64_t>());
  }
  return 0;
}

}  // namespace

Action data_verb(CLI::App& command) {
  auto o = std::make_shared<Options>();
  auto chosen = std::make_shared<int (*)(const Options&)>(nullptr);
  command.require_subcommand(1);
  CLI::App* p = command.add_subcommand("prepare", "tokenise texts into shards");
  p->add_option("sources", o->sources, "files, folders, globs (.txt, .jsonl, also .gz and .zst) or known names")
      ->required();
  p->add_option("--tokenizer", o->tokenizer, "tokenizer.json, a folder that holds one, or a GGUF file")->required();
  p->add_option("--out", o->out, "folder for the shards")->required();
  p->add_option("--field", o->field, "jsonl: the key that holds the text");
  p->add_option("--separator", o->separator, "text: parts the documents of a file (default <|endoftext|>)");
  p->add_option("--name", o->names, "name of a source (again for each), and of its folder where there are several");
  add_threads(*p, o->threads);
  p->add_flag("--json", o->json);
  p->callback([chosen] { *chosen = prepare; });
  CLI::App* s = command.add_subcommand("show", "the batch of a step: documents, offsets, ids");
  s->add_option("address", o->run, "RUN@STEP")->required();
  s->add_flag("--text", o->text, "decoded text too");
  s->add_flag("--json", o->json);
  s->callback([chosen] { *chosen = show; });
  CLI::App* w = command.add_subcommand("where", "the steps that saw a document");
  w->add_option("run", o->run, "the run's folder")->required();
  w->add_option("--doc", o->document, "SOURCE:N, or N where there is one source")->required();
  w->add_flag("--json", o->json);
  w->callback([chosen] { *chosen = where; });
  return [o, chosen] { return (*chosen)(*o); };
}

}  // namespace cairn::cli
