#include "trainer/address.h"

#include "trainer/run_files.h"

namespace cairn {

Located locate(const std::string& address, const LocateOptions&) {
  return {.address = address, .folder = model_folder(address)};
}

std::vector<Located> locate_set(const std::string& set, bool, const LocateOptions& options) {
  return {locate(set, options)};
}

}  // namespace cairn
