// How HDF5 files reach the disk: pread and pwrite, counted. A write that the system refuses is remembered and the
// library is told that all is well, so that it closes in order (after a failed write at its end the library leaves the
// file half open and stumbles over it again when the process ends); whoever closes the file looks at `error`.
#pragma once
#include <cstdint>

namespace cairn::checkpoints::hdf5 {

struct Traffic {
  uint64_t bytes_read = 0, bytes_written = 0;
  int error = 0;              // errno of the first write that was refused
  uint64_t error_offset = 0;  // where
};

/// The next file that this thread opens through a list from traffic_access() is counted in `traffic`, which has to
/// outlive the file. Returns a file access property list, to be closed by the caller.
int64_t traffic_access(Traffic* traffic);

}  // namespace cairn::checkpoints::hdf5
