#include "trainer/parallel/group.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <map>
#include <stdexcept>
#include <vector>

namespace cairn::parallel {
namespace {

std::map<std::string, GroupMaker>& table() {
  static std::map<std::string, GroupMaker> makers = {{"gloo", make_gloo_group}};
  return makers;
}

}  // namespace

void register_group(const std::string& backend, GroupMaker maker) { table()[backend] = maker; }

void check_backend(const std::string& backend) {
  if (table().contains(backend)) return;
  std::vector<std::string> names;
  for (const auto& [name, maker] : table()) names.push_back(name);
  throw std::invalid_argument(
      fmt::format("no communication backend '{}' (there is {}){}", backend, fmt::join(names, ", "),
                  backend == "nccl" ? ": nccl comes with the CUDA module, which this process has not loaded" : ""));
}

c10::intrusive_ptr<c10d::Backend> make_group(const std::string& backend, const GroupPlace& place) {
  check_backend(backend);
  return table().at(backend)(place);
}

}  // namespace cairn::parallel
