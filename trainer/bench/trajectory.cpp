#include "trainer/bench/trajectory.h"

#include <cstring>

#include "checkpoints/trajectory/reader.h"
#include "trainer/bench/sizes.h"
#include "trainer/model_io.h"
#include "trainer/stepper.h"
#include "trainer/trajectory.h"

namespace cairn::bench {
namespace {

namespace fs = std::filesystem;
namespace trajectory = checkpoints::trajectory;
using checkpoints::hdf5::Type;
using Json = nlohmann::ordered_json;

// A folder that goes when the benchmark ends, however it ends.
class Folder {
 public:
  explicit Folder(const fs::path& parent) {
    std::string name = ((parent.empty() ? fs::temp_directory_path() : parent) / "cairn-bench-XXXXXX").string();
    if (!mkdtemp(name.data()))
      throw std::runtime_error(fmt::format("{}: cannot make a folder there: {}", name, std::strerror(errno)));
    path_ = name;
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

// Real training on text, a byte a token: the sizes' models as `cairn train` would make them.
config::RunConfig run_config(const std::string& size_name, const TrajectoryBenchOptions& o, int64_t steps,
                             const fs::path& cache) {
  const Size& s = size_named(size_name);
  Json model = llama_config(s, s.context);
  model["vocab_size"] = std::max<int64_t>(s.vocabulary, 264);  // bytes and the end of a text
  const Json run{{"objective", "pretrain"},
                 {"model", model},
                 {"data",
                  {{"train", Json::array({{{"text", o.text}}})},
                   {"tokenizer", {{"bytes", true}}},
                   {"context", s.context},
                   {"cache", cache.string()}}},
                 {"optim",
                  {{"name", "adamw"},
                   {"lr", 1e-3},
                   {"schedule", {{"name", "wsd"}, {"warmup", steps / 10}, {"decay", steps / 4}}}}},
                 {"train", {{"steps", steps}, {"batch", s.micro_batch}, {"micro_batch", s.micro_batch}, {"lanes", 1}}},
                 {"trajectory", {{"every", 10}, {"dtype", o.dtype}, {"codec", o.codec}}}};
  return config::parse(run.dump(), (cache / "bench.yaml").string());  // JSON is YAML
}

// Copies of the weights 10 steps apart.
struct Snapshots {
  std::vector<std::vector<checkpoints::TensorView>> rows;
  std::vector<std::vector<char>> bytes;
};

Snapshots train_small(const TrajectoryBenchOptions& o, parallel::World& world, const fs::path& folder) {
  Stepper stepper(run_config("4m", o, o.steps, folder), world);
  stepper.prepare();
  stepper.open();
  stepper.initialise();
  Snapshots snapshots;
  for (int64_t step = 1; step <= o.steps; ++step) {
    stepper.advance();
    if (step % 10 != 0) continue;
    const DiskModel model = disk_model(stepper.state().model());
    auto& row = snapshots.rows.emplace_back();
    for (const auto& view : model.views) {
      const auto* data = static_cast<const char*>(view.data);
      snapshots.bytes.emplace_back(data, data + view.bytes());
      row.push_back(view);
      row.back().data = snapshots.bytes.back().data();
    }
  }
  return snapshots;
}

trajectory::Format format_of(const std::vector<checkpoints::TensorView>& views, Type type, trajectory::Codec codec) {
  trajectory::Format format;
  format.dtype = type;
  format.codec = codec;
  for (const auto& view : views) format.tensors.push_back({view.name, view.shape});
  return format;
}

uint64_t bytes_in(const fs::path& folder) {
  uint64_t bytes = 0;
  for (const auto& entry : fs::directory_iterator(folder)) bytes += entry.file_size();
  return bytes;
}

// Everything in the folder (segments, join, list) over the raw bytes.
Json sizes(const Snapshots& snapshots, const fs::path& folder) {
  Json out;
  for (const Type type : {Type::f32, Type::bf16}) {
    for (const auto codec : {trajectory::Codec::plain, trajectory::Codec::zstd, trajectory::Codec::delta}) {
      const fs::path to = folder / "sizes";
      const auto format = format_of(snapshots.rows.front(), type, codec);
      trajectory::Writer writer(to, format, {.threads = at::get_num_threads()});
      const double seconds = seconds_of([&] {
        for (size_t k = 0; k < snapshots.rows.size(); ++k) writer.add(10 * (k + 1), snapshots.rows[k]);
        writer.seal();
      });
      const double raw = static_cast<double>(format.step_bytes()) * snapshots.rows.size();
      out[checkpoints::hdf5::type_name(type)][trajectory::codec_name(codec)] = bytes_in(to) / raw;
      out[checkpoints::hdf5::type_name(type)][fmt::format("{}_mb_per_s", trajectory::codec_name(codec))] =
          raw / seconds / 1e6;
      fs::remove_all(to);
    }
  }
  return out;
}

// One matrix over 100 stored steps, as `plain` bfloat16 holds it.
Json read_back(const Snapshots& snapshots, const fs::path& folder) {
  constexpr int64_t kSteps = 100, kLeast = 64 << 10;
  std::vector<size_t> layer;
  const auto& first = snapshots.rows.front();
  for (size_t t = 0; t < first.size(); ++t)
    if (first[t].name.find("layers.0.") != std::string::npos) layer.push_back(t);
  const auto chosen = [&](size_t row) {
    std::vector<checkpoints::TensorView> views;
    for (const size_t t : layer) views.push_back(snapshots.rows[row][t]);
    return views;
  };
  const auto format = format_of(chosen(0), Type::bf16, trajectory::Codec::plain);
  const fs::path to = folder / "read";
  trajectory::Writer writer(to, format, {.threads = at::get_num_threads()});
  for (int64_t step = 1; step <= kSteps; ++step) writer.add(step, chosen(step % snapshots.rows.size()));
  writer.seal();
  Json worst;
  for (size_t t = 0; t < format.tensors.size(); ++t) {
    const int64_t bytes = format.tensors[t].numel() * 2;
    if (bytes < kLeast) continue;
    uint64_t stored = 0;
    for (const auto& s : writer.index().segments) {
      trajectory::SegmentReader segment(to / s.file.path, format);
      const auto& p = segment.placement(t);
      for (int64_t row = 0; row < segment.rows(); row += p.steps)
        for (int64_t piece = 0; piece < p.pieces; ++piece) stored += segment.raw_chunk(t, row, piece).size();
    }
    trajectory::Reader reader(to);
    reader.read(t, 0, kSteps);
    const double ratio = static_cast<double>(reader.bytes_read()) / stored;
    if (!worst.is_null() && worst["ratio"].get<double>() >= ratio) continue;
    worst = {{"tensor", format.tensors[t].name},  {"bytes", bytes}, {"steps", kSteps}, {"stored_bytes", stored},
             {"read_bytes", reader.bytes_read()}, {"ratio", ratio}};
  }
  return worst;
}

// Ten steps with a stored one among them and ten without, in turns.
Json loop_cost(const TrajectoryBenchOptions& o, parallel::World& world, const fs::path& folder) {
  const int64_t steps = 20 * (o.pairs + 1) + 5;
  const config::RunConfig config = run_config(o.size, o, steps, folder);
  Stepper stepper(config, world);
  stepper.prepare();
  stepper.open();
  stepper.initialise();
  TrajectoryHook hook(config, folder / "run", stepper.state(), true, -1);
  std::vector<double> with, without, stalls;
  double digest = 0;
  const auto ten = [&](bool stored) {
    return seconds_of([&] {
      for (int i = 0; i < 10; ++i) {
        stepper.advance();
        digest += stepper.state().digest().lo & 1;  // as the loop does
        if (stored) hook.step(stepper.state(), false);
      }
      if (stored) hook.drain();  // what is left would keep the next ten
    });
  };
  // Steps 20, 40, ... are stored: in the middle of ten, so that the writing runs beside training, as it does in a run.
  for (int i = 0; i < 5; ++i) stepper.advance();
  for (int pair = -1; pair < o.pairs; ++pair) {
    const double plain = ten(false), stored = ten(true);
    if (pair < 0) continue;
    without.push_back(plain);
    with.push_back(stored);
    stalls.push_back(hook.last_stall());
  }
  hook.finish();
  return {{"size", o.size},           {"dtype", o.dtype},
          {"codec", o.codec},         {"without_s", median(without)},
          {"with_s", median(with)},   {"cost", median(with) / median(without) - 1},
          {"stall_s", median(stalls)}};
}

}  // namespace

nlohmann::ordered_json bench_trajectory(const TrajectoryBenchOptions& options) {
  if (options.steps < 20)
    throw std::invalid_argument(fmt::format("steps: found {}, expected 20 or more", options.steps));
  if (options.pairs < 0) throw std::invalid_argument(fmt::format("pairs: found {}, expected 0 or more", options.pairs));
  const auto world = parallel::World::join();
  const Folder folder(options.dir);
  Json out;
  {
    const Snapshots snapshots = train_small(options, *world, folder.path());
    out["sizes"] = sizes(snapshots, folder.path());
    out["read"] = read_back(snapshots, folder.path());
  }
  if (options.pairs > 0) out["loop"] = loop_cost(options, *world, folder.path());
  world->leave();
  return out;
}

}  // namespace cairn::bench
