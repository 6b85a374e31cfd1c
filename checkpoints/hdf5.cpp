#include "checkpoints/hdf5.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <hdf5.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <stdexcept>

#include "checkpoints/hdf5_driver.h"

namespace cairn::checkpoints::hdf5 {
namespace {

namespace fs = std::filesystem;

// The innermost message of the library's error stack: the first cause.
std::string reason() {
  std::string text;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned n, const H5E_error2_t* error, void* to) -> herr_t {
        if (n == 0 && error->desc) *static_cast<std::string*>(to) = error->desc;
        return 0;
      },
      &text);
  H5Eclear2(H5E_DEFAULT);
  return text.empty() ? "no reason given" : text;
}

// The library's own printing of errors is off in every thread that comes here: they are thrown instead.
void quiet() {
  static thread_local const bool done = H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
  (void)done;
}

int close_space(Id id) { return H5Sclose(id); }
int close_list(Id id) { return H5Pclose(id); }
int close_type(Id id) { return H5Tclose(id); }
int close_dataset(Id id) { return H5Dclose(id); }
int close_attribute(Id id) { return H5Aclose(id); }
int close_object(Id id) { return H5Oclose(id); }

Id make_bf16() {
  const hid_t type = H5Tcopy(H5T_IEEE_F32LE);
  H5Tset_fields(type, 15, 7, 8, 0, 7);  // sign bit 15, 8 bits of exponent at 7, 7 bits of mantissa at 0
  H5Tset_size(type, 2);
  H5Tset_ebias(type, 127);
  return type;
}

// One row an element type: name, bytes, as it lies in a file, in memory.
struct TypeRow {
  const char* name;
  size_t size;
  Id disk, memory;
};

const TypeRow& row(Type type) {
  static const Id bf16 = make_bf16();
  static const TypeRow rows[] = {
      {"uint8", 1, H5T_STD_U8LE, H5T_NATIVE_UINT8},
      {"uint16", 2, H5T_STD_U16LE, H5T_NATIVE_UINT16},
      {"uint32", 4, H5T_STD_U32LE, H5T_NATIVE_UINT32},
      {"uint64", 8, H5T_STD_U64LE, H5T_NATIVE_UINT64},
      {"int8", 1, H5T_STD_I8LE, H5T_NATIVE_INT8},
      {"int16", 2, H5T_STD_I16LE, H5T_NATIVE_INT16},
      {"int32", 4, H5T_STD_I32LE, H5T_NATIVE_INT32},
      {"int64", 8, H5T_STD_I64LE, H5T_NATIVE_INT64},
      {"float32", 4, H5T_IEEE_F32LE, H5T_NATIVE_FLOAT},
      {"float64", 8, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE},
      {"bfloat16", 2, bf16, bf16},
  };
  return rows[static_cast<int>(type)];
}

constexpr int kTypes = static_cast<int>(Type::bf16) + 1;

// Groups on the way to a new object are made, and text is UTF-8.
Handle link_list() {
  Handle list(H5Pcreate(H5P_LINK_CREATE), close_list);
  H5Pset_create_intermediate_group(list, 1);
  H5Pset_char_encoding(list, H5T_CSET_UTF8);
  return list;
}

Handle string_type() {
  Handle type(H5Tcopy(H5T_C_S1), close_type);
  H5Tset_size(type, H5T_VARIABLE);
  H5Tset_cset(type, H5T_CSET_UTF8);
  return type;
}

herr_t collect(hid_t, const char* name, const H5L_info_t*, void* to) {
  static_cast<std::vector<std::string>*>(to)->push_back(name);
  return 0;
}

}  // namespace

size_t type_size(Type type) { return row(type).size; }
const char* type_name(Type type) { return row(type).name; }
Id disk_type(Type type) { return row(type).disk; }
Id memory_type(Type type) { return row(type).memory; }

File::File(fs::path path, bool create)
    : path_(std::move(path)), traffic_(std::make_shared<Traffic>()), writes_(create) {
  quiet();
  if (!create && !fs::exists(path_)) throw std::runtime_error(fmt::format("{}: no such file", path_.string()));
  const Handle access(traffic_access(traffic_.get()), close_list);
  errno = 0;
  id_ = create ? H5Fcreate(path_.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access)
               : H5Fopen(path_.c_str(), H5F_ACC_RDONLY, access);
  if (id_ >= 0) return;
  const int error = errno;
  const std::string why = reason();
  throw std::runtime_error(fmt::format("{}: cannot {} as HDF5: {}{}", path_.string(), create ? "be written" : "be read",
                                       why, error ? fmt::format(" ({})", std::strerror(error)) : ""));
}

File File::create(const fs::path& path) { return File(path, true); }
File File::open(const fs::path& path) { return File(path, false); }

File& File::operator=(File&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(traffic_, other.traffic_);
  std::swap(id_, other.id_);
  std::swap(writes_, other.writes_);
  return *this;
}

File::~File() {
  if (traffic_ && id_ >= 0) H5Fclose(id_);
}

void File::close() {
  if (id_ < 0) return;
  const herr_t closed = H5Fclose(std::exchange(id_, -1));
  if (closed < 0 || traffic_->error) fail("", "close");
}

void File::check_disk() const {
  if (traffic_->error) fail("", "write");
}

void File::finish() {
  close();
  const int fd = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  const bool synced = fd >= 0 && ::fsync(fd) == 0;
  const int error = errno;
  if (fd >= 0) ::close(fd);
  if (!synced) throw std::runtime_error(fmt::format("cannot sync {}: {}", path_.string(), std::strerror(error)));
}

uint64_t File::bytes_read() const { return traffic_->bytes_read; }
uint64_t File::bytes_written() const { return traffic_->bytes_written; }

void File::fail(const std::string& object, const std::string& doing) const {
  const std::string where = object.empty() ? path_.string() : fmt::format("{}: {}", path_.string(), object);
  if (const int error = traffic_->error) {
    throw std::runtime_error(fmt::format(
        "{}: cannot {}: the system refused a write at offset {}: {}{}", where, doing, traffic_->error_offset,
        std::strerror(error),
        error == ENOSPC || error == EDQUOT || error == EFBIG ? ": free space there or write elsewhere" : ""));
  }
  throw std::runtime_error(fmt::format("{}: cannot {}: {}", where, doing, reason()));
}

bool File::contains(const std::string& name) const {
  quiet();
  // The library answers for the last part of a path alone.
  for (size_t at = name.find('/', 1);; at = name.find('/', at + 1)) {
    const std::string part = name.substr(0, at);
    if (part != "/" && !part.empty() && H5Lexists(id_, part.c_str(), H5P_DEFAULT) <= 0) return false;
    if (at == std::string::npos) return true;
  }
}

std::vector<std::string> File::names(const std::string& group) const {
  std::vector<std::string> found;
  if (!contains(group)) return found;
  const Handle open(check(H5Oopen(id_, group.c_str(), H5P_DEFAULT), *this, group, "open"), close_object);
  if (H5Iget_type(open) != H5I_GROUP) return found;
  check(H5Literate(open, H5_INDEX_NAME, H5_ITER_NATIVE, nullptr, collect, &found), *this, group, "list");
  std::sort(found.begin(), found.end());
  return found;
}

std::vector<std::string> File::datasets(const std::string& group) const {
  std::vector<std::string> found;
  for (const std::string& name : names(group)) {
    const std::string path = group.empty() || group == "/" ? name : group + "/" + name;
    const Handle open(check(H5Oopen(id_, path.c_str(), H5P_DEFAULT), *this, path, "open"), close_object);
    if (H5Iget_type(open) == H5I_DATASET) {
      found.push_back(path);
    } else {
      const auto below = datasets(path);
      found.insert(found.end(), below.begin(), below.end());
    }
  }
  return found;
}

Handle File::dataset(const std::string& name) const {
  if (!contains(name)) throw std::runtime_error(fmt::format("{}: there is no dataset '{}'", path_.string(), name));
  return Handle(check(H5Dopen2(id_, name.c_str(), H5P_DEFAULT), *this, name, "open the dataset"), close_dataset);
}

std::vector<int64_t> File::shape(const std::string& name) const {
  const Handle open = dataset(name);
  const Handle space(check(H5Dget_space(open), *this, name, "read the shape"), close_space);
  std::vector<hsize_t> dims(std::max(check(H5Sget_simple_extent_ndims(space), *this, name, "read the shape"), 0));
  H5Sget_simple_extent_dims(space, dims.data(), nullptr);
  return {dims.begin(), dims.end()};
}

int64_t File::count(const std::string& name) const {
  int64_t n = 1;
  for (int64_t extent : shape(name)) n *= extent;
  return n;
}

Type File::type(const std::string& name) const {
  const Handle open = dataset(name);
  const Handle type(check(H5Dget_type(open), *this, name, "read the type"), close_type);
  for (int t = 0; t < kTypes; ++t)
    if (H5Tequal(type, disk_type(static_cast<Type>(t))) > 0) return static_cast<Type>(t);
  throw std::runtime_error(
      fmt::format("{}: {}: an element type that is none of this program's numbers", path_.string(), name));
}

void File::write_array(const std::string& name, Type type, const void* data, size_t count,
                       const std::vector<int64_t>& shape) {
  int64_t wanted = 1;
  for (int64_t extent : shape) wanted *= extent;
  if (wanted < 0 || static_cast<size_t>(wanted) != count)
    throw std::invalid_argument(
        fmt::format("{}: {}: {} values for the shape [{}]", path_.string(), name, count, fmt::join(shape, ", ")));
  quiet();
  const std::vector<hsize_t> dims(shape.begin(), shape.end());
  const Handle space(
      dims.empty() ? H5Screate(H5S_SCALAR) : H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr),
      close_space);
  check<Id>(space, *this, name, "make the shape of");
  const Handle open(check(H5Dcreate2(id_, name.c_str(), disk_type(type), space, link_list(), H5P_DEFAULT, H5P_DEFAULT),
                          *this, name, "create the dataset"),
                    close_dataset);
  if (count > 0)
    check(H5Dwrite(open, memory_type(type), H5S_ALL, H5S_ALL, H5P_DEFAULT, data), *this, name, "write the values of");
}

void File::read_array(const std::string& name, Type type, void* data) const {
  const Handle open = dataset(name);
  check(H5Dread(open, memory_type(type), H5S_ALL, H5S_ALL, H5P_DEFAULT, data), *this, name, "read the values of");
}

void File::write_strings(const std::string& name, const std::vector<std::string>& values) {
  quiet();
  std::vector<const char*> text;
  for (const std::string& value : values) text.push_back(value.c_str());
  const hsize_t count = text.size();
  const Handle space(H5Screate_simple(1, &count, nullptr), close_space);
  const Handle type = string_type();
  const Handle open(check(H5Dcreate2(id_, name.c_str(), type, space, link_list(), H5P_DEFAULT, H5P_DEFAULT), *this,
                          name, "create the dataset"),
                    close_dataset);
  if (count > 0)
    check(H5Dwrite(open, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, text.data()), *this, name, "write the strings of");
}

std::vector<std::string> File::read_strings(const std::string& name) const {
  std::vector<char*> text(count(name));
  const Handle open = dataset(name), type = string_type();
  const Handle space(H5Dget_space(open), close_space);
  check(H5Dread(open, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, text.data()), *this, name, "read the strings of");
  std::vector<std::string> values;
  for (const char* t : text) values.emplace_back(t ? t : "");
  H5Dvlen_reclaim(type, space, H5P_DEFAULT, text.data());
  return values;
}

void File::write_attribute(const std::string& object, const std::string& key, Id type, const void* data) {
  quiet();
  const Handle open(check(H5Oopen(id_, object.c_str(), H5P_DEFAULT), *this, object, "open"), close_object);
  if (H5Aexists(open, key.c_str()) > 0) H5Adelete(open, key.c_str());
  const Handle space(H5Screate(H5S_SCALAR), close_space);
  const Handle attribute(check(H5Acreate2(open, key.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT), *this, object,
                               "create the attribute " + key),
                         close_attribute);
  check(H5Awrite(attribute, type, data), *this, object, "write the attribute " + key);
}

void File::set_attribute(const std::string& object, const std::string& key, const std::string& value) {
  const Handle type = string_type();
  const char* text = value.c_str();
  write_attribute(object, key, type, &text);
}

void File::set_attribute(const std::string& object, const std::string& key, int64_t value) {
  write_attribute(object, key, H5T_NATIVE_INT64, &value);
}

void File::set_attribute(const std::string& object, const std::string& key, double value) {
  write_attribute(object, key, H5T_NATIVE_DOUBLE, &value);
}

bool File::has_attribute(const std::string& object, const std::string& key) const {
  quiet();
  return H5Aexists_by_name(id_, object.c_str(), key.c_str(), H5P_DEFAULT) > 0;
}

void File::read_attribute(const std::string& object, const std::string& key, Id type, void* data) const {
  if (!has_attribute(object, key))
    throw std::runtime_error(fmt::format("{}: {}: there is no attribute '{}'", path_.string(), object, key));
  const Handle attribute(H5Aopen_by_name(id_, object.c_str(), key.c_str(), H5P_DEFAULT, H5P_DEFAULT), close_attribute);
  check(H5Aread(attribute, type, data), *this, object, "read the attribute " + key);
}

std::string File::string_attribute(const std::string& object, const std::string& key) const {
  const Handle type = string_type();
  char* text = nullptr;
  read_attribute(object, key, type, &text);
  std::string value = text ? text : "";
  H5free_memory(text);
  return value;
}

int64_t File::int_attribute(const std::string& object, const std::string& key) const {
  int64_t value = 0;
  read_attribute(object, key, H5T_NATIVE_INT64, &value);
  return value;
}

double File::double_attribute(const std::string& object, const std::string& key) const {
  double value = 0;
  read_attribute(object, key, H5T_NATIVE_DOUBLE, &value);
  return value;
}

}  // namespace cairn::checkpoints::hdf5
