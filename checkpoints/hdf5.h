// HDF5 files: whole arrays with their shapes, attributes and lists of strings, read by h5py as they stand. Errors are
// std::runtime_error and name the file, the object in it and the library's reason. What must appear whole is written
// beside (create, write, finish) and renamed by the caller. Different files may be used from different threads at once
// (Debian's library is built thread-safe), one File from one thread at a time.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace cairn::checkpoints::hdf5 {

/// Element types of arrays. bf16 lies in the file as a float of 16 bits that every reader converts to float32 exactly.
enum class Type { u8, u16, u32, u64, i8, i16, i32, i64, f32, f64, bf16 };

template <class T>
constexpr Type type_of() {
  if constexpr (std::is_same_v<T, float>)
    return Type::f32;
  else if constexpr (std::is_same_v<T, double>)
    return Type::f64;
  else {
    static_assert(std::is_integral_v<T> && !std::is_same_v<T, bool>);
    constexpr int log = sizeof(T) == 1 ? 0 : sizeof(T) == 2 ? 1 : sizeof(T) == 4 ? 2 : 3;
    return static_cast<Type>(static_cast<int>(std::is_signed_v<T> ? Type::i8 : Type::u8) + log);
  }
}

size_t type_size(Type type);
const char* type_name(Type type);

/// The library's handles are integers of 64 bits.
using Id = int64_t;

/// An identifier that is closed when it goes out of scope.
class Handle {
 public:
  using Close = int (*)(Id);
  Handle() = default;
  Handle(Id id, Close close) : id_(id), close_(close) {}
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
    return *this;
  }
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  operator Id() const { return id_; }
  /// Gives the identifier up without closing it.
  Id release() { return std::exchange(id_, -1); }

 private:
  Id id_ = -1;
  Close close_ = nullptr;
};

/// One file. Names are paths inside it ("weights/model.norm.weight"); groups on the way are made when written.
class File {
 public:
  /// A new file; an existing one is replaced.
  static File create(const std::filesystem::path& path);
  /// An existing file, to read.
  static File open(const std::filesystem::path& path);
  File(File&&) noexcept = default;
  File& operator=(File&&) noexcept;
  /// Closes; what could not be written is lost without a word, so writers call close() or finish().
  ~File();

  /// Writes what is left and closes. Throws where the disk refused any byte since the file was made; the file is then
  /// of no use.
  void close();
  /// Throws where the disk refused a byte so far: what close() would say, at once.
  void check_disk() const;
  /// close() and fsync.
  void finish();

  const std::filesystem::path& path() const { return path_; }
  Id id() const { return id_; }
  /// Bytes that the library read from and wrote to this file so far (sources of virtual datasets not counted).
  uint64_t bytes_read() const;
  uint64_t bytes_written() const;

  bool contains(const std::string& name) const;
  /// Names directly below a group, sorted; empty where there is no such group.
  std::vector<std::string> names(const std::string& group = "/") const;
  /// Every dataset below a group, as paths from the file's root, sorted.
  std::vector<std::string> datasets(const std::string& group = "/") const;
  /// Of a dataset; throws where it is missing.
  std::vector<int64_t> shape(const std::string& name) const;
  Type type(const std::string& name) const;

  /// A new dataset, row-major. Throws std::invalid_argument where the shape does not hold that many values.
  template <class T>
  void write(const std::string& name, std::span<const T> values, const std::vector<int64_t>& shape) {
    write_array(name, type_of<T>(), values.data(), values.size(), shape);
  }
  template <class T>
  void write(const std::string& name, const std::vector<T>& values, const std::vector<int64_t>& shape) {
    write(name, std::span<const T>(values), shape);
  }
  /// One dimension.
  template <class T>
  void write(const std::string& name, const std::vector<T>& values) {
    write(name, std::span<const T>(values), {static_cast<int64_t>(values.size())});
  }
  /// UTF-8 of variable length, one dimension.
  void write_strings(const std::string& name, const std::vector<std::string>& values);

  /// The whole array; numbers are converted to T by the library.
  template <class T>
  std::vector<T> read(const std::string& name) const {
    std::vector<T> values(count(name));
    read_array(name, type_of<T>(), values.data());
    return values;
  }
  std::vector<std::string> read_strings(const std::string& name) const;

  /// Attributes of a dataset or group ("/": the file). An attribute that is there is replaced.
  void set_attribute(const std::string& object, const std::string& key, const std::string& value);
  void set_attribute(const std::string& object, const std::string& key, const char* value) {
    set_attribute(object, key, std::string(value));
  }
  void set_attribute(const std::string& object, const std::string& key, int64_t value);
  void set_attribute(const std::string& object, const std::string& key, double value);
  bool has_attribute(const std::string& object, const std::string& key) const;
  std::string string_attribute(const std::string& object, const std::string& key) const;
  int64_t int_attribute(const std::string& object, const std::string& key) const;
  double double_attribute(const std::string& object, const std::string& key) const;

  /// An open dataset for calls of the library itself.
  Handle dataset(const std::string& name) const;
  /// "FILE: DATASET: doing: the library's reason", thrown as std::runtime_error; what the disk refused comes first.
  [[noreturn]] void fail(const std::string& object, const std::string& doing) const;

 private:
  File(std::filesystem::path path, bool create);
  void write_array(const std::string& name, Type type, const void* data, size_t count,
                   const std::vector<int64_t>& shape);
  void read_array(const std::string& name, Type type, void* data) const;
  int64_t count(const std::string& name) const;
  void write_attribute(const std::string& object, const std::string& key, Id type, const void* data);
  void read_attribute(const std::string& object, const std::string& key, Id type, void* data) const;

  std::filesystem::path path_;
  std::shared_ptr<struct Traffic> traffic_;
  Id id_ = -1;
  bool writes_ = false;
};

/// The library's type of an element: as it lies in files (little-endian), or in memory. Not to be closed.
Id disk_type(Type type);
Id memory_type(Type type);

/// Throws file.fail(object, doing) where the library returned a negative number.
template <class R>
R check(R result, const File& file, const std::string& object, const std::string& doing) {
  if (result < 0) file.fail(object, doing);
  return result;
}

}  // namespace cairn::checkpoints::hdf5
