#include "trainer/address_cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstring>
#include <mutex>

#include "checkpoints/manifest.h"
#include "checkpoints/pieces.h"
#include "checkpoints/store.h"
#include "trainer/model_io.h"

namespace cairn {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

// A lock on one folder of the cache: shared while a process uses it, exclusive to build or remove it.
class EntryLock {
 public:
  explicit EntryLock(const fs::path& entry) {
    const fs::path path = entry.parent_path() / (".lock-" + entry.filename().string());
    fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd_ < 0)
      throw std::runtime_error(fmt::format("cannot write {}: {}; a step that is not stored is rebuilt into that folder",
                                           path.string(), std::strerror(errno)));
  }
  ~EntryLock() {
    if (fd_ >= 0) ::close(fd_);
  }
  EntryLock(EntryLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  void shared() { lock(LOCK_SH); }
  void release() { lock(LOCK_UN); }
  bool try_exclusive() { return ::flock(fd_, LOCK_EX | LOCK_NB) == 0; }

 private:
  void lock(int how) {
    while (::flock(fd_, how) != 0) {
      if (errno != EINTR) throw std::runtime_error(fmt::format("cannot lock the cache: {}", std::strerror(errno)));
    }
  }
  int fd_ = -1;
};

// Locks of what this process uses, until it ends.
std::map<std::string, EntryLock>& used() {
  static std::map<std::string, EntryLock> locks;
  return locks;
}
std::recursive_mutex used_mutex;  // a state may hang on another run's (model.from)

constexpr const char* kKinds[] = {"full", "weights", "ema"};  // of each Part, in the manifest

// The key of the manifest that has the digest of the state: an average is not the state itself.
const char* digest_key(Part part) { return part == Part::ema ? "state" : "digest"; }

// What the manifest says.
bool fits(const fs::path& folder, const Wanted& wanted) {
  if (!fs::exists(folder)) return false;
  try {
    const Json about = checkpoints::read_manifest(folder).about;
    if (wanted.part && about.value("kind", "") != kKinds[static_cast<int>(*wanted.part)]) return false;
    return wanted.digest.empty() || about.value(digest_key(wanted.part.value_or(Part::full)), "") == wanted.digest;
  } catch (const std::exception&) {  // damaged
    return false;
  }
}

bool whole(const fs::path& folder, const Wanted& wanted) {
  return fits(folder, wanted) && !checkpoints::verify_folder(folder);
}

fs::path entry_path(const fs::path& run, const std::string& name) {
  return fs::absolute(cache_folder(run) / name).lexically_normal();
}

void touch(const fs::path& folder) {
  std::error_code ignored;  // a cache that cannot be written can still be read
  fs::last_write_time(folder / checkpoints::kManifestName, fs::file_time_type::clock::now(), ignored);
}

void remove_folder(const fs::path& folder) {
  const fs::path hidden = folder.parent_path() / (checkpoints::kDeletedPrefix + folder.filename().string());
  fs::remove_all(hidden);
  fs::rename(folder, hidden);
  fs::remove_all(hidden);
}

uint64_t bytes_of(const fs::path& folder) {
  try {
    return checkpoints::read_manifest(folder).bytes();
  } catch (const std::exception&) {
    return 0;
  }
}

// Removes what was used longest ago until the rest fits.
void evict(const fs::path& cache) {
  struct Entry {
    fs::path folder;
    fs::file_time_type used;
    uint64_t bytes;
  };
  std::vector<Entry> entries;
  uint64_t total = 0;
  std::error_code error;
  for (auto it = fs::directory_iterator(cache, error); !error && it != fs::directory_iterator(); it.increment(error)) {
    if (!it->path().filename().string().starts_with("step-")) continue;
    const auto time = fs::last_write_time(it->path() / checkpoints::kManifestName, error);
    if (error) {
      error.clear();  // another process removed it
      continue;
    }
    entries.push_back({it->path(), time, bytes_of(it->path())});
    total += entries.back().bytes;
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.used < b.used; });
  for (const Entry& entry : entries) {
    if (total <= cache_limit()) return;
    EntryLock lock(entry.folder);
    if (!lock.try_exclusive()) continue;  // in use
    if (fs::exists(entry.folder)) remove_folder(entry.folder);
    total -= entry.bytes;
  }
}

void write_tokenizer(checkpoints::FolderCommit& folder, const data::Tokenizer& tokenizer) {
  std::string pattern = (fs::temp_directory_path() / "cairn-tokenizer-XXXXXX").string();
  if (!::mkdtemp(pattern.data()))
    throw std::runtime_error(fmt::format("cannot create {}: {}", pattern, std::strerror(errno)));
  tokenizer.save(pattern);
  for (const auto& entry : fs::directory_iterator(pattern)) folder.copy(entry.path().filename().string(), entry.path());
  fs::remove_all(pattern);
}

void write_model_files(checkpoints::FolderCommit& folder, const models::Decoder& model) {
  folder.write("config.json", config_text(model));
  folder.write("generation_config.json", generation_config_text(model));
  folder.write_model(disk_model(model).views);
}

// Puts the average in the place of the weights; buffers stay.
void fill_average(models::Decoder& model, const std::function<at::Tensor(const std::string&)>& read) {
  const at::NoGradGuard no_grad;
  for (const auto& parameter : model.parameters().all())
    parameter.value().copy_(read("ema." + parameter.name).view(parameter.value().sizes()));
}

}  // namespace

fs::path cache_folder(const fs::path& run) { return run / "cache"; }

uint64_t cache_limit() {
  const char* text = std::getenv("CAIRN_CACHE_GIB");
  if (!text || !*text) return uint64_t{4} << 30;
  char* end = nullptr;
  const double gib = std::strtod(text, &end);
  if (*end || !(gib >= 0))
    throw std::invalid_argument(fmt::format("CAIRN_CACHE_GIB: found '{}', expected a number of GiB", text));
  return static_cast<uint64_t>(gib * (1 << 30));
}

std::string entry_name(int64_t step, Part part) {
  static constexpr const char* kEnds[] = {"", "-weights", "-ema"};
  return checkpoints::Store::folder_name(step) + kEnds[static_cast<int>(part)];
}

bool seems_cached(const fs::path& run, const std::string& name, const Wanted& wanted) {
  return fits(entry_path(run, name), wanted);
}

std::optional<fs::path> find_cached(const fs::path& run, const std::string& name, const Wanted& wanted) {
  const fs::path folder = entry_path(run, name);
  const std::lock_guard guard(used_mutex);
  if (!fits(folder, wanted)) return std::nullopt;
  if (used().contains(folder.string())) return folder;
  EntryLock lock(folder);
  lock.shared();
  if (!whole(folder, wanted)) return std::nullopt;
  touch(folder);
  used().emplace(folder.string(), std::move(lock));
  return folder;
}

void drop_cached_after(const fs::path& run, int64_t step) {
  std::vector<fs::path> gone;
  std::error_code error;
  const fs::path cache = cache_folder(run);
  for (auto it = fs::directory_iterator(cache, error); !error && it != fs::directory_iterator(); it.increment(error)) {
    const std::string name = it->path().filename().string();
    const auto found = checkpoints::Store::step_of(name.substr(0, name.find('-', std::strlen("step-"))));
    if (found && *found > step) gone.push_back(it->path());
  }
  for (const fs::path& folder : gone) {
    try {
      EntryLock lock(folder);
      if (lock.try_exclusive() && fs::exists(folder)) remove_folder(folder);
    } catch (const std::exception&) {  // what stays is not used: its digest is another
    }
  }
}

fs::path cached(const fs::path& run, const std::string& name, const Wanted& wanted,
                const std::function<void(const fs::path&)>& build) {
  const std::lock_guard guard(used_mutex);
  if (const auto found = find_cached(run, name, wanted)) return *found;
  const fs::path folder = entry_path(run, name);
  used().erase(folder.string());  // it was used here, and the run went another way since
  std::error_code error;
  fs::create_directories(folder.parent_path(), error);
  if (error) {
    throw std::runtime_error(fmt::format("cannot create {}: {}; a step that is not stored is rebuilt into that folder",
                                         folder.parent_path().string(), error.message()));
  }
  EntryLock lock(folder);
  // One builds; the others wait for its lock and find the folder.
  for (int attempt = 0;; ++attempt) {
    lock.shared();
    if (whole(folder, wanted)) break;
    lock.release();
    if (lock.try_exclusive()) {
      if (!whole(folder, wanted)) {
        if (fs::exists(folder)) remove_folder(folder);
        build(folder);
      }
      lock.shared();
      break;
    }
    if (attempt == 500)
      throw std::runtime_error(
          fmt::format("{} is damaged or of a past that the run left, and in use by another process: end that, or "
                      "delete the folder",
                      folder.string()));
    ::usleep(20'000);
  }
  touch(folder);
  used().emplace(folder.string(), std::move(lock));
  evict(folder.parent_path());
  return folder;
}

void write_state(const fs::path& target, Stepper& stepper, Part part, double elapsed,
                 const std::function<void()>& before_commit) {
  State& state = stepper.state();
  checkpoints::FolderCommit folder(target);
  Json about{{"step", state.step}, {"kind", kKinds[static_cast<int>(part)]}, {digest_key(part), state.digest().hex()}};
  write_tokenizer(folder, *stepper.tokenizer());
  if (part == Part::ema) {
    std::map<std::string, at::Tensor> average;
    if (state.ema())
      for (const auto& [name, tensor] : state.ema()->state()) average["ema." + name] = tensor;
    if (average.empty())
      throw std::runtime_error(fmt::format("step {} has no moving average: the run's optim.ema is 0", state.step));
    models::Decoder model(state.model().config());
    for (const auto& buffer : model.parameters().buffers())
      buffer.tensor.copy_(state.model().parameters().buffer(buffer.name).tensor);
    fill_average(model, [&](const auto& name) { return average.at(name); });
    write_model_files(folder, model);
  } else {
    write_model_files(folder, state.model());
  }
  if (part == Part::full) {
    std::vector<at::Tensor> owners;
    std::vector<checkpoints::TensorView> views;
    for (const auto& extra : state.extras()) {
      owners.push_back(extra.tensor.cpu().contiguous());
      views.push_back(view_of(extra.name, owners.back()));
    }
    folder.write_safetensors("training/optimizer.safetensors", views);
    folder.write("training/state.json", Json{{"step", state.step},
                                             {"updates", state.updates()},
                                             {"tokens", stepper.tokens},
                                             {"elapsed", elapsed},
                                             {"digest", about.at("digest")}}
                                                .dump(2) +
                                            "\n");
  }
  if (before_commit) before_commit();
  folder.commit(about);
}

void write_ema(const fs::path& target, const fs::path& from) {
  auto saved = checkpoints::PiecedTensors::open(from / "training" / "optimizer");
  checkpoints::FolderCommit folder(target);
  for (const auto& entry : fs::directory_iterator(from)) {
    const std::string name = entry.path().filename().string();
    const bool model = name == "config.json" || name == "generation_config.json" || name.starts_with("model");
    if (entry.is_regular_file() && !model && name != checkpoints::kManifestName) folder.copy(name, entry.path());
  }
  const auto model = load_model(from.string());
  fill_average(*model, [&](const std::string& name) {
    if (!saved.contains(name)) {
      throw std::runtime_error(
          fmt::format("{} has no moving average ({} is not in it): the run's optim.ema is 0", from.string(), name));
    }
    return tensor_of(saved.get(name));
  });
  write_model_files(folder, *model);
  const Json about = checkpoints::read_manifest(from).about;
  folder.commit({{"step", about.value("step", int64_t{0})},
                 {"kind", kKinds[static_cast<int>(Part::ema)]},
                 {digest_key(Part::ema), about.value("digest", "")}});
}

}  // namespace cairn
