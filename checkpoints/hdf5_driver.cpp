#include "checkpoints/hdf5_driver.h"

#include <fcntl.h>
#include <hdf5.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace cairn::checkpoints::hdf5 {
namespace {

static_assert(sizeof(hid_t) == sizeof(int64_t));

struct Settings {
  Traffic* traffic;
};

// The library knows the first member alone.
struct OpenFile {
  H5FD_t base;
  int fd;
  dev_t device;
  ino_t inode;
  haddr_t end_allocated;  // what the library takes as the end
  haddr_t end;            // what the disk has
  Traffic* traffic;
};

OpenFile* self(H5FD_t* file) { return reinterpret_cast<OpenFile*>(file); }
const OpenFile* self(const H5FD_t* file) { return reinterpret_cast<const OpenFile*>(file); }

H5FD_t* open_file(const char* name, unsigned flags, hid_t access, haddr_t) {
  const auto* settings = static_cast<const Settings*>(H5Pget_driver_info(access));
  if (!settings) return nullptr;
  int mode = (flags & H5F_ACC_RDWR) ? O_RDWR : O_RDONLY;
  if (flags & H5F_ACC_CREAT) mode |= O_CREAT;
  if (flags & H5F_ACC_TRUNC) mode |= O_TRUNC;
  if (flags & H5F_ACC_EXCL) mode |= O_EXCL;
  const int fd = ::open(name, mode | O_CLOEXEC, 0644);
  if (fd < 0) return nullptr;
  struct stat info {};
  if (::fstat(fd, &info) != 0) {
    ::close(fd);
    return nullptr;
  }
  auto* file = static_cast<OpenFile*>(std::calloc(1, sizeof(OpenFile)));
  if (!file) {
    ::close(fd);
    return nullptr;
  }
  file->fd = fd;
  file->device = info.st_dev;
  file->inode = info.st_ino;
  file->end = info.st_size;
  file->traffic = settings->traffic;
  return &file->base;
}

herr_t close_file(H5FD_t* file) {
  Traffic& traffic = *self(file)->traffic;
  if (::close(self(file)->fd) != 0 && traffic.error == 0) traffic.error = errno;
  std::free(file);
  return 0;
}

// Files that are equal here share one OpenFile, which lives as long as the last of them: so a file that two Files have
// open is two, else the second would count in the traffic of the first, which may be gone by then.
int compare(const H5FD_t* a, const H5FD_t* b) {
  const auto &x = *self(a), &y = *self(b);
  if (x.device != y.device) return x.device < y.device ? -1 : 1;
  if (x.inode != y.inode) return x.inode < y.inode ? -1 : 1;
  return x.traffic == y.traffic ? 0 : x.traffic < y.traffic ? -1 : 1;
}

herr_t query(const H5FD_t*, unsigned long* flags) {
  *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |
           H5FD_FEAT_AGGREGATE_SMALLDATA | H5FD_FEAT_DEFAULT_VFD_COMPATIBLE;
  return 0;
}

haddr_t get_end_allocated(const H5FD_t* file, H5FD_mem_t) { return self(file)->end_allocated; }

herr_t set_end_allocated(H5FD_t* file, H5FD_mem_t, haddr_t address) {
  self(file)->end_allocated = address;
  return 0;
}

haddr_t get_end(const H5FD_t* file, H5FD_mem_t) { return self(file)->end; }

herr_t get_handle(H5FD_t* file, hid_t, void** handle) {
  *handle = &self(file)->fd;
  return 0;
}

herr_t read_bytes(H5FD_t* file, H5FD_mem_t, hid_t, haddr_t address, size_t size, void* buffer) {
  auto* to = static_cast<char*>(buffer);
  while (size > 0) {
    const ssize_t n = ::pread(self(file)->fd, to, size, address);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return -1;
    if (n == 0) {  // beyond the end there are zeros
      std::memset(to, 0, size);
      break;
    }
    self(file)->traffic->bytes_read += n;
    to += n;
    address += n;
    size -= n;
  }
  return 0;
}

herr_t write_bytes(H5FD_t* file, H5FD_mem_t, hid_t, haddr_t address, size_t size, const void* buffer) {
  OpenFile& f = *self(file);
  const auto* from = static_cast<const char*>(buffer);
  while (size > 0 && f.traffic->error == 0) {
    const ssize_t n = ::pwrite(f.fd, from, size, address);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      f.traffic->error = n < 0 ? errno : ENOSPC;
      f.traffic->error_offset = address;
      break;
    }
    f.traffic->bytes_written += n;
    from += n;
    address += n;
    size -= n;
  }
  f.end = std::max<haddr_t>(f.end, address + size);
  return 0;
}

herr_t truncate(H5FD_t* file, hid_t, hbool_t) {
  OpenFile& f = *self(file);
  if (f.end_allocated == f.end) return 0;
  if (f.traffic->error == 0 && ::ftruncate(f.fd, f.end_allocated) != 0) {
    f.traffic->error = errno;
    f.traffic->error_offset = f.end_allocated;
  }
  f.end = f.end_allocated;
  return 0;
}

hid_t driver() {
  static const hid_t id = [] {
    H5FD_class_t c{};
#if H5_VERSION_GE(1, 13, 0)
    c.version = H5FD_CLASS_VERSION;
    c.value = static_cast<H5FD_class_value_t>(400);
#endif
    c.name = "cairn";
    c.maxaddr = static_cast<haddr_t>(1) << 62;
    c.fc_degree = H5F_CLOSE_STRONG;
    c.fapl_size = sizeof(Settings);
    c.open = open_file;
    c.close = close_file;
    c.cmp = compare;
    c.query = query;
    c.get_eoa = get_end_allocated;
    c.set_eoa = set_end_allocated;
    c.get_eof = get_end;
    c.get_handle = get_handle;
    c.read = read_bytes;
    c.write = write_bytes;
    c.truncate = truncate;
    const H5FD_mem_t lists[] = H5FD_FLMAP_DICHOTOMY;
    std::memcpy(c.fl_map, lists, sizeof lists);
    return H5FDregister(&c);
  }();
  return id;
}

}  // namespace

int64_t traffic_access(Traffic* traffic) {
  const hid_t list = H5Pcreate(H5P_FILE_ACCESS);
  const Settings settings{traffic};
  H5Pset_driver(list, driver(), &settings);
  H5Pset_fclose_degree(list, H5F_CLOSE_STRONG);
  // What 1.10 and everything after it reads: smaller indices of chunks, checksums over all that is not data.
  H5Pset_libver_bounds(list, H5F_LIBVER_V110, H5F_LIBVER_V110);
  return list;
}

}  // namespace cairn::checkpoints::hdf5
