// c10d process groups by backend. Nobody else names a backend.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace cairn::parallel {

struct GroupPlace {
  c10::intrusive_ptr<c10d::Store> store;  // of this group alone (prefixed)
  int rank = 0, size = 1;
  int local_rank = 0;   // on this machine; with NCCL the number of its GPU
  std::string address;  // of the store: the network interface that leads there is the one to bind to
  bool several_machines = false;
  std::chrono::milliseconds limit{};     // for connecting
  std::chrono::milliseconds patience{};  // for each exchange
};

using GroupMaker = c10::intrusive_ptr<c10d::Backend> (*)(const GroupPlace&);

// Throws std::invalid_argument naming the backends there are; "nccl" is there once the CUDA module has registered it.
c10::intrusive_ptr<c10d::Backend> make_group(const std::string& backend, const GroupPlace& place);
void check_backend(const std::string& backend);  // throws what make_group would
void register_group(const std::string& backend, GroupMaker maker);

c10::intrusive_ptr<c10d::Backend> make_gloo_group(const GroupPlace& place);

}  // namespace cairn::parallel
