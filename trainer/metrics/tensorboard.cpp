// Event files: TFRecord framing (tensorflow/core/lib/io/record_writer.h) around the messages of
// tensorboard/compat/proto/{event,summary,tensor}.proto; their field numbers stand beside each call below.
#include "trainer/metrics/tensorboard.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "checkpoints/crc32c.h"

namespace cairn {
namespace {

namespace fs = std::filesystem;

constexpr size_t kFlushBytes = 64 << 10;

enum Wire { varint = 0, fixed64 = 1, length = 2, fixed32 = 5 };

void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}

template <class T>
void put_raw(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);  // little-endian, as protobuf and TFRecord want it
}

void put_key(std::string& out, int field, Wire wire) { put_varint(out, field << 3 | wire); }

void put_int(std::string& out, int field, int64_t value) {
  put_key(out, field, varint);
  put_varint(out, static_cast<uint64_t>(value));
}

void put_bytes(std::string& out, int field, std::string_view bytes) {
  put_key(out, field, length);
  put_varint(out, bytes.size());
  out += bytes;
}

uint32_t masked_crc(std::string_view bytes) {
  const uint32_t crc = checkpoints::crc32c(bytes.data(), bytes.size());
  return std::rotr(crc, 15) + 0xA282EAD8u;
}

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

// TensorBoard reads the files of a folder in the order of their names: a new one has to come after those that are
// there, even when the clock went back or a run was resumed within the second. `first`: none are there.
int64_t next_stamp(const fs::path& folder, bool& first) {
  int64_t stamp = static_cast<int64_t>(now());
  first = true;
  constexpr std::string_view prefix = "events.out.tfevents.";
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(prefix)) continue;
    stamp = std::max<int64_t>(stamp, std::atoll(name.c_str() + prefix.size()) + 1);
    first = false;
  }
  return stamp;
}

}  // namespace

TensorBoardWriter::TensorBoardWriter(const fs::path& folder, int64_t purge_step) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw std::runtime_error(fmt::format("cannot create the folder {}: {}", folder.string(), error.message()));
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  bool first = true;
  const int64_t stamp = next_stamp(folder, first);
  path_ = folder / fmt::format("events.out.tfevents.{:010}.{}.{}", stamp, host.data(), ::getpid());
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0644);
  if (fd_ < 0) throw std::runtime_error(fmt::format("cannot create {}: {}", path_.string(), std::strerror(errno)));
  std::string version;
  put_bytes(version, 3, "brain.Event:2");  // Event.file_version: from 2 on a session start purges
  event(0, version);
  // NOTE: the page's reader takes the first session start that it sees for the beginning and purges from the second on,
  // so the first file needs one as well.
  if (purge_step >= 0 || first) {
    std::string session, start;
    put_int(session, 1, 1);        // SessionLog.status = START
    put_bytes(start, 7, session);  // Event.session_log
    event(std::max<int64_t>(purge_step, 0), start);
  }
  flush();
}

TensorBoardWriter::TensorBoardWriter(TensorBoardWriter&& other) noexcept
    : path_(std::move(other.path_)), pending_(std::move(other.pending_)), fd_(std::exchange(other.fd_, -1)) {}

TensorBoardWriter::~TensorBoardWriter() {
  if (fd_ < 0) return;
  try {
    flush();
  } catch (const std::exception&) {  // a destructor has nobody to tell; flush() tells
  }
  ::close(fd_);
}

void TensorBoardWriter::event(int64_t step, std::string_view body) {
  std::string message;
  put_key(message, 1, fixed64);  // Event.wall_time
  put_raw(message, now());
  if (step != 0) put_int(message, 2, step);  // Event.step; a zero is not written in proto3
  message += body;
  std::string size;
  put_raw(size, static_cast<uint64_t>(message.size()));
  pending_ += size;
  put_raw(pending_, masked_crc(size));
  pending_ += message;
  put_raw(pending_, masked_crc(message));
  if (pending_.size() >= kFlushBytes) flush();
}

void TensorBoardWriter::scalar(std::string_view tag, double value, int64_t step) {
  std::string entry, summary, body;
  put_bytes(entry, 1, tag);    // Summary.Value.tag
  put_key(entry, 2, fixed32);  // Summary.Value.simple_value
  put_raw(entry, static_cast<float>(value));
  put_bytes(summary, 1, entry);  // Summary.value
  put_bytes(body, 5, summary);   // Event.summary
  event(step, body);
}

void TensorBoardWriter::text(std::string_view tag, std::string_view markdown, int64_t step) {
  std::string extent, shape, tensor, plugin, metadata, entry, summary, body;
  put_int(extent, 1, 1);           // TensorShapeProto.Dim.size
  put_bytes(shape, 2, extent);     // TensorShapeProto.dim
  put_int(tensor, 1, 7);           // TensorProto.dtype = DT_STRING
  put_bytes(tensor, 2, shape);     // TensorProto.tensor_shape
  put_bytes(tensor, 8, markdown);  // TensorProto.string_val
  put_bytes(plugin, 1, "text");    // SummaryMetadata.PluginData.plugin_name
  put_bytes(metadata, 1, plugin);  // SummaryMetadata.plugin_data
  put_int(metadata, 4, 2);         // SummaryMetadata.data_class = DATA_CLASS_TENSOR
  put_bytes(entry, 1, tag);        // Summary.Value.tag
  put_bytes(entry, 8, tensor);     // Summary.Value.tensor
  put_bytes(entry, 9, metadata);   // Summary.Value.metadata
  put_bytes(summary, 1, entry);    // Summary.value
  put_bytes(body, 5, summary);     // Event.summary
  event(step, body);
}

void TensorBoardWriter::flush() {
  size_t done = 0;
  while (done < pending_.size()) {
    const ssize_t n = ::write(fd_, pending_.data() + done, pending_.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const int error = errno;
      pending_.erase(0, done);  // what is left goes out with the next flush
      throw std::runtime_error(fmt::format("cannot write {}: {}", path_.string(), std::strerror(error)));
    }
    done += n;
  }
  pending_.clear();
}

}  // namespace cairn
