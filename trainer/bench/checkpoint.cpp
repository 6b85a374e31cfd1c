#include "trainer/bench/checkpoint.h"

#include <cstring>

#include "models/families/family.h"
#include "trainer/bench/sizes.h"
#include "trainer/run_files.h"

namespace cairn::bench {
namespace {

namespace fs = std::filesystem;

// A folder that goes when the benchmark ends, however it ends.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const fs::path& parent) {
    std::string name = ((parent.empty() ? fs::temp_directory_path() : parent) / "cairn-bench-XXXXXX").string();
    if (!mkdtemp(name.data()))
      throw std::runtime_error(fmt::format("{}: cannot make a folder there: {}", name, std::strerror(errno)));
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

void plain_copy(void* to, const void* from, int64_t bytes) {
  const int64_t parts = at::get_num_threads();
#pragma omp parallel for schedule(static) num_threads(parts)
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t begin = bytes * part / parts, end = bytes * (part + 1) / parts;
    std::memcpy(static_cast<char*>(to) + begin, static_cast<const char*>(from) + begin, end - begin);
  }
}

}  // namespace

nlohmann::ordered_json bench_checkpoint(const CheckpointBenchOptions& options) {
  if (options.saves < 1) throw std::invalid_argument(fmt::format("saves: found {}, expected 1 or more", options.saves));
  const Size& s = size_named(options.size);
  const auto world = parallel::World::join();
  State state(models::decoder_config(llama_config(s, s.context), true), at::kFloat, *world, 1, 0);
  state.model().parameters().initialise(0);
  state.set_optimizer(optim::defaults("adamw"), 0);
  int64_t bytes = state.model().parameters().numel() * static_cast<int64_t>(sizeof(float));
  for (const auto& extra : state.extras()) {
    extra.tensor.fill_(1);
    bytes += extra.tensor.nbytes();
  }

  const TemporaryFolder folder(options.dir);
  checkpoints::Store store(folder.path() / "run", checkpoints::Store::Mode::write);
  config::RunConfig config;
  config.checkpoints.keep.all = false;
  config.checkpoints.keep.last = 1;
  const auto tokenizer = data::Tokenizer::bytes();
  Saver saver(store, config, *tokenizer, true);
  saver.reserve(state);
  const at::Tensor from = at::ones({bytes}, at::kByte), to = at::ones({bytes}, at::kByte);

  // In turns, so that whatever else the machine does meets all of them.
  std::vector<double> copies, stalls, inner, writes;
  for (int i = -1; i < options.saves; ++i) {
    std::vector<double> copy;
    for (int k = 0; k < 3; ++k)
      copy.push_back(seconds_of([&] { plain_copy(to.mutable_data_ptr(), from.const_data_ptr(), bytes); }));
    state.step = i + 2;
    const double stall = seconds_of([&] { saver.save(state, {{"step", state.step}}, {{"kind", "full"}}); });
    const double write = seconds_of([&] { saver.drain(); });
    if (i < 0) continue;
    copies.push_back(median(copy));
    stalls.push_back(stall);
    inner.push_back(saver.last_copy());
    writes.push_back(write);
  }
  world->leave();
  const double gib = bytes / static_cast<double>(int64_t{1} << 30);
  return {{"size", options.size},
          {"params", state.model().parameters().numel()},
          {"threads", at::get_num_threads()},
          {"bytes", bytes},
          {"copy_s", median(copies)},
          {"stall_s", median(stalls)},
          {"snapshot_s", median(inner)},
          {"stall_over_copy", median(stalls) / median(copies)},
          {"write_s", median(writes)},
          {"write_gib_per_s", gib / median(writes)}};
}

}  // namespace cairn::bench
