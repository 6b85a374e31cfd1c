#include "trainer/bench/replay.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "trainer/bench/sizes.h"
#include "trainer/replay.h"
#include "trainer/replay_steps.h"
#include "trainer/train.h"

namespace cairn::bench {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

// Random bytes as ids, enough for every step to read its own; the model's vocabulary is as large as ever.
void write_ids(const fs::path& path, int64_t count) {
  std::mt19937 draw(1);
  std::vector<uint16_t> ids(count);
  for (uint16_t& id : ids) id = static_cast<uint16_t>(draw() % 256);
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(ids.data()), 2 * count);
}

config::RunConfig run_config(const Size& s, const fs::path& dir, int steps) {
  write_ids(dir / "ids.bin", (steps + 1) * s.micro_batch * s.context + 1);
  const Json tree{{"model", llama_config(s, s.context)},
                  {"data",
                   {{"train", Json::array({{{"shards", (dir / "ids.bin").string()}, {"dtype", "uint16"}}})},
                    {"tokenizer", {{"bytes", true}}},
                    {"context", s.context},
                    {"cache", (dir / "data").string()}}},
                  {"optim", {{"name", "adamw"}, {"lr", 3e-4}}},
                  {"train",
                   {{"steps", steps},
                    {"batch", s.micro_batch},
                    {"micro_batch", s.micro_batch},
                    {"lanes", 1},
                    {"log_every", 1000000}}},
                  {"checkpoints", {{"every", 0}, {"at_end", false}}},
                  {"metrics", {{"tensorboard", false}}}};
  return config::parse(tree.dump(), "the benchmark");
}

struct Folder {
  fs::path path;
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
};

}  // namespace

Json bench_replay(const ReplayBenchOptions& options) {
  const Size& s = size_named(options.size);
  const Folder folder{(options.dir.empty() ? fs::temp_directory_path() : fs::path(options.dir)) /
                      fmt::format("cairn-bench-replay-{}", ::getpid())};
  fs::create_directories(folder.path);
  const config::RunConfig config = run_config(s, folder.path, options.steps);
  const auto world = parallel::World::join(parallel::Launch{});
  std::vector<double> trained, replayed;
  bool verified = true;
  fs::path run;
  for (int round = 0; round < options.rounds; ++round) {
    run = folder.path / fmt::format("run-{}", round);
    start_run(config, run, *world, true);
    const RunRecord record(run);
    for (const auto& [step, line] : record.lines(2, options.steps)) trained.push_back(line.at("seconds").get<double>());
    double before = 0;
    const ReplayReport report = replay(record, {.progress = [&](const ReplayProgress& p) {
                                         if (p.step > 1) replayed.push_back(p.seconds - before);
                                         before = p.seconds;
                                       }});
    verified &= report.verified();
  }
  const RunRecord record(run);
  Replayer replayer(record);
  replayer.begin(0, false);
  replayer.next();
  const double digest = timed([&] { replayer.stepper().state().digest(); }, 2, 20);
  const double train_s = median(trained), replay_s = median(replayed);
  return {{"size", options.size},      {"threads", at::get_num_threads()},
          {"steps", options.steps},    {"rounds", options.rounds},
          {"verified", verified},      {"train_step_s", train_s},
          {"replay_step_s", replay_s}, {"ratio", train_s / replay_s},
          {"digest_s", digest},        {"digest_share", digest / train_s}};
}

}  // namespace cairn::bench
