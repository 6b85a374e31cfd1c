#include "checkpoints/trajectory/writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <set>
#include <stdexcept>
#include <thread>

#include "checkpoints/kernels/byte_planes.h"

namespace cairn::checkpoints::trajectory {
namespace {

namespace fs = std::filesystem;

// What a thread works with.
struct Scratch {
  explicit Scratch(Codec codec) : compressor(codec) {}
  Compressor compressor;
  std::vector<char> bits, words;
};

// Runs task(i, scratch) for i in [0, count) on several threads; throws the first error.
void run_parallel(size_t count, int threads, Codec codec, const std::function<void(size_t, Scratch&)>& task) {
  std::atomic<size_t> next{0};
  std::exception_ptr error;
  std::mutex mutex;
  const auto work = [&] {
    try {
      Scratch scratch(codec);
      for (size_t i; (i = next++) < count;) task(i, scratch);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
      next = count;
    }
  };
  std::vector<std::thread> others;
  for (int k = 1; k < threads && k < static_cast<int>(count); ++k) others.emplace_back(work);
  work();
  for (std::thread& t : others) t.join();
  if (error) std::rethrow_exception(error);
}

// `count` elements of a tensor from `first` on as bits of the stored type: where they lie, or converted into `scratch`.
const void* stored_bits(const TensorView& view, hdf5::Type type, int64_t first, int64_t count,
                        std::vector<char>& scratch) {
  const bool narrow = view.dtype == DType::BF16;
  const char* from = static_cast<const char*>(view.data) + first * (narrow ? 2 : 4);
  if (narrow == (type == hdf5::Type::bf16)) return from;
  scratch.resize(count * hdf5::type_size(type));
  if (narrow) {
    widen_bf16(reinterpret_cast<const uint16_t*>(from), reinterpret_cast<uint32_t*>(scratch.data()), count);
  } else {
    round_to_bf16(reinterpret_cast<const float*>(from), reinterpret_cast<uint16_t*>(scratch.data()), count);
  }
  return scratch.data();
}

template <class Word>
void encode(const void* bits, const void* before, void* words, int64_t count) {
  encode_delta(static_cast<const Word*>(bits), static_cast<const Word*>(before), static_cast<Word*>(words), count);
}

bool is_ours(const std::string& name) {
  return name.starts_with(".tmp-") || (name.starts_with("segment-") && name.ends_with(".h5"));
}

void move_file(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::rename(from, to, error);
  if (error)
    throw std::runtime_error(fmt::format("cannot rename {} to {}: {}", from.string(), to.string(), error.message()));
}

}  // namespace

Writer::Writer(fs::path folder, Format format, WriterOptions options, int64_t keep_to)
    : folder_(std::move(folder)), options_(std::move(options)) {
  if (format.tensors.empty()) throw std::invalid_argument(folder_.string() + ": a trajectory of no tensor");
  fs::create_directories(folder_);
  const bool there = fs::exists(folder_ / kManifestName);
  if (there) index_ = read_index(folder_);
  Index kept = index_;
  cut(kept, keep_to);
  if (kept.segments.empty()) {
    kept.format = format;
  } else if (kept.format != format) {
    const bool same_tensors = kept.format.tensors == format.tensors;
    throw std::invalid_argument(fmt::format(
        "{}: this trajectory holds {} in {}{}, asked for are {} in {}: a trajectory keeps its format; keep the "
        "settings, or move the folder away to begin a new one",
        folder_.string(), hdf5::type_name(kept.format.dtype), codec_name(kept.format.codec),
        same_tensors ? "" : fmt::format(" of {} tensors", kept.format.tensors.size()), hdf5::type_name(format.dtype),
        same_tensors ? codec_name(format.codec)
                     : fmt::format("{} of {} tensors (or others)", codec_name(format.codec), format.tensors.size())));
  }
  if (!there) {
    write_index(folder_, kept);
    index_ = kept;
  } else {
    const bool joined = !index_.joins.empty() && fs::exists(folder_ / kJoinName) &&
                        digest_file(folder_ / kJoinName).xxh3 == index_.joins.back().xxh3;
    if (kept.steps() != index_.steps() || kept.format != index_.format || (!joined && !kept.segments.empty()))
      publish(kept);
  }
  std::set<std::string> listed;
  for (const Segment& s : index_.segments) listed.insert(s.file.path);
  std::vector<fs::path> gone;
  for (const auto& entry : fs::directory_iterator(folder_)) {
    const std::string name = entry.path().filename().string();
    if (is_ours(name) && !listed.contains(name)) gone.push_back(entry.path());
  }
  for (const fs::path& path : gone) fs::remove(path);
  const auto steps = index_.steps();
  if (!steps.empty()) newest_ = steps.back();
  if (index_.format.codec == Codec::delta)
    for (const auto& t : index_.format.tensors) before_.emplace_back(t.numel() * hdf5::type_size(index_.format.dtype));
}

Writer::~Writer() = default;

// Drops the steps after keep_to: whole segments, and the end of the one that keep_to falls into.
void Writer::cut(Index& index, int64_t keep_to) {
  while (!index.segments.empty() && index.segments.back().steps.back() > keep_to) {
    const Segment last = index.segments.back();
    index.segments.pop_back();
    if (last.steps.front() > keep_to) continue;
    const std::string name = segment_name(index.next_number++);
    Segment rest = merge_segments(folder_, index.format, std::span(&last, 1), folder_ / (".tmp-" + name), keep_to);
    rest.file.path = name;
    move_file(folder_ / (".tmp-" + name), folder_ / name);
    sync_folder(folder_);
    index.segments.push_back(std::move(rest));
  }
}

int64_t Writer::last_step() const { return newest_; }

void Writer::add(int64_t step, std::span<const TensorView> tensors) {
  const Format& format = index_.format;
  if (step <= newest_)
    throw std::invalid_argument(
        fmt::format("{}: step {} after step {}: steps ascend", folder_.string(), step, newest_));
  if (tensors.size() != format.tensors.size())
    throw std::invalid_argument(
        fmt::format("{}: {} tensors, expected {}", folder_.string(), tensors.size(), format.tensors.size()));
  for (size_t t = 0; t < tensors.size(); ++t) {
    const TensorView& view = tensors[t];
    if (view.name != format.tensors[t].name || view.shape != format.tensors[t].shape)
      throw std::invalid_argument(fmt::format("{}: tensor {} is '{}', expected '{}' of the shape that it had",
                                              folder_.string(), t, view.name, format.tensors[t].name));
    if (view.dtype != DType::F32 && view.dtype != DType::BF16)
      throw std::invalid_argument(
          fmt::format("{}: {} is {}, expected F32 or BF16", folder_.string(), view.name, dtype_name(view.dtype)));
  }
  if (!segment_) {
    const int64_t steps = std::clamp(options_.segment_bytes / std::max<int64_t>(format.step_bytes(), 1), int64_t{1},
                                     options_.segment_steps);
    segment_ = std::make_unique<SegmentWriter>(folder_ / (".tmp-" + segment_name(index_.next_number)), format, steps);
  }
  struct Task {
    size_t tensor;
    int64_t piece;
  };
  std::vector<Task> tasks;
  for (size_t t = 0; t < tensors.size(); ++t)
    for (int64_t piece = 0; piece < segment_->placement(t).pieces; ++piece) tasks.push_back({t, piece});
  const int width = static_cast<int>(hdf5::type_size(format.dtype));
  const bool delta = format.codec == Codec::delta;
  const bool key = need_key_ || since_key_ >= options_.key_every;
  try {
    segment_->begin(step, !delta || key);
    run_parallel(tasks.size(), options_.threads, format.codec, [&](size_t i, Scratch& scratch) {
      const auto [t, piece] = tasks[i];
      const Placement& p = segment_->placement(t);
      const int64_t first = piece * p.elements;
      const int64_t count = std::min(p.elements, format.tensors[t].numel() - first);
      const void* words = stored_bits(tensors[t], format.dtype, first, count, scratch.bits);
      if (delta) {
        char* before = before_[t].data() + first * width;
        scratch.words.resize(count * width);
        (width == 2 ? encode<uint16_t> : encode<uint32_t>)(words, key ? nullptr : before, scratch.words.data(), count);
        std::memcpy(before, words, count * width);
        words = scratch.words.data();
      }
      if (p.steps > 1) {
        std::memcpy(segment_->slot(t), words, count * width);
        return;
      }
      if (count < p.elements) {  // the last piece, padded
        std::vector<char> padded(p.elements * width);
        std::memcpy(padded.data(), words, count * width);
        segment_->write_piece(t, piece, scratch.compressor.compress(padded.data(), p.elements, width));
      } else {
        segment_->write_piece(t, piece, scratch.compressor.compress(words, count, width));
      }
    });
    segment_->end();
  } catch (...) {
    segment_.reset();
    need_key_ = true;
    throw;
  }
  newest_ = step;
  since_key_ = key ? 1 : since_key_ + 1;
  need_key_ = false;
  if (segment_->full()) seal();
}

void Writer::seal() {
  if (!segment_ || segment_->rows() == 0) return;
  const std::string name = segment_name(index_.next_number);
  try {
    Segment sealed = segment_->finish();
    sealed.file.path = name;
    if (options_.before_seal) options_.before_seal();
    move_file(folder_ / (".tmp-" + name), folder_ / name);
    sync_folder(folder_);
    Index next = index_;
    next.next_number += 1;
    next.segments.push_back(std::move(sealed));
    std::vector<fs::path> gone;
    merge_where_many(next, gone);
    publish(std::move(next));
    for (const fs::path& path : gone) fs::remove(path);
  } catch (...) {
    segment_.reset();
    need_key_ = true;
    throw;
  }
  segment_.reset();
}

// The neighbours that are least work.
void Writer::merge_where_many(Index& index, std::vector<fs::path>& gone) {
  while (index.segments.size() > options_.max_segments) {
    const size_t n = std::min(options_.merge, index.segments.size());
    size_t best = 0;
    uint64_t least = UINT64_MAX;
    for (size_t at = 0; at + n <= index.segments.size(); ++at) {
      uint64_t bytes = 0;
      for (size_t k = at; k < at + n; ++k) bytes += index.segments[k].file.size;
      if (bytes < least) best = at, least = bytes;
    }
    const std::string name = segment_name(index.next_number++);
    const auto begin = index.segments.begin() + best;
    Segment merged = merge_segments(folder_, index.format, std::span(&*begin, n), folder_ / (".tmp-" + name));
    merged.file.path = name;
    move_file(folder_ / (".tmp-" + name), folder_ / name);
    sync_folder(folder_);
    for (auto s = begin; s != begin + n; ++s) gone.push_back(folder_ / s->file.path);
    index.segments.insert(index.segments.erase(begin, begin + n), std::move(merged));
  }
}

// The join is written before the list that names its digest and takes its place after it: at every instant the list
// knows the join that is there, and every source of that join is there.
void Writer::publish(Index next) {
  const fs::path beside = folder_ / (std::string(".tmp-") + kJoinName);
  FileEntry join = write_join(beside, next);
  next.joins = {join};
  if (fs::exists(folder_ / kJoinName)) next.joins.insert(next.joins.begin(), digest_file(folder_ / kJoinName));
  write_index(folder_, next);
  index_ = std::move(next);
  move_file(beside, folder_ / kJoinName);
  sync_folder(folder_);
}

}  // namespace cairn::checkpoints::trajectory
