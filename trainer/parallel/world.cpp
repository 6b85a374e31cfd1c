#include "trainer/parallel/world.h"

#include <fmt/format.h>

#include <c10/util/Logging.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <future>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "optim/norm.h"
#include "trainer/parallel/group_transport.h"

namespace cairn::parallel {

struct World::Impl {
  Launch launch;
  WorldOptions options;
  c10::intrusive_ptr<c10d::Store> store;  // last to go
  std::unique_ptr<Watch> watch;
  int groups = 0;
  std::unique_ptr<Transport> small;  // of the main thread's exchanges

  // mine to all; theirs[r] from rank r (theirs[own] is left alone).
  void exchange(const at::Tensor& mine, const std::vector<at::Tensor>& theirs) {
    std::vector<Message> sends, receives;
    for (int other = 0; other < launch.size; ++other)
      if (other != launch.rank) {
        sends.push_back({mine, other});
        receives.push_back({theirs[other], other});
      }
    small->post(sends, receives)->wait();
  }
};

namespace {

c10::intrusive_ptr<c10d::Store> make_store(const Launch& launch, const WorldOptions& options) {
  c10d::TCPStoreOptions store;
  store.port = static_cast<uint16_t>(launch.port);
  store.isServer = launch.rank == 0 && !launch.launcher_store;
  store.waitWorkers = false;  // the watch waits, and knows whom for
  store.timeout = options.limit;
  try {
    return c10::make_intrusive<c10d::PrefixStore>(fmt::format("cairn/{}", launch.attempt),
                                                  c10::make_intrusive<c10d::TCPStore>(launch.address, store));
  } catch (const std::exception& e) {
    const std::string what = e.what(), line = what.substr(0, what.find('\n'));
    if (store.isServer)
      throw std::runtime_error(fmt::format(
          "rank 0 cannot open the store of this run on port {}: {}; set MASTER_PORT to a free one", launch.port, line));
    const std::string where = fmt::format("{}:{}", launch.address, launch.port);
    throw RankLost(launch.launcher_store ? std::vector<int>{} : std::vector<int>{0},
                   fmt::format("{} cannot be reached at {} within {:.1f} s: {}",
                               launch.launcher_store ? "the launcher's store" : "rank 0, which holds the store,", where,
                               options.limit.count() / 1e3, line));
  }
}

}  // namespace

World::World(const Launch& launch, const WorldOptions& options)
    : rank(launch.rank), size(launch.size), local_rank(launch.local_rank), impl_(std::make_unique<Impl>()) {
  impl_->launch = launch;
  impl_->options = options;
}

std::unique_ptr<World> World::join(const Launch& launch, const WorldOptions& options) {
  std::signal(SIGPIPE, SIG_IGN);  // a rank that is gone is an error of the message to it, not the end of this one
  std::unique_ptr<World> world(new World(launch, options));
  if (launch.size == 1) return world;
  check_backend(options.backend);
  // c10d reports a closed connection with pages of C++ frames; the errors thrown here say what happened.
  setenv("TORCH_CPP_LOG_LEVEL", "FATAL", 0);
  c10::initLogging();
  Impl& impl = *world->impl_;
  impl.store = make_store(launch, options);
  impl.watch = std::make_unique<Watch>(impl.store->clone(), launch.rank, launch.size, launch.launcher_store ? -1 : 0,
                                       options.limit);
  impl.small = world->transport("small");
  world->barrier();
  return world;
}

World::~World() {
  try {
    leave("it ended without a word");
  } catch (const std::exception&) {
    // Nothing is left to be done about it: this rank is going.
  }
}

std::unique_ptr<Transport> World::transport(const std::string& name, at::Device device) {
  Impl& impl = *impl_;
  if (size == 1) {
    struct Alone : Transport {
      std::unique_ptr<Pending> post(const std::vector<Message>&, const std::vector<Message>&) override {
        struct Nothing : Pending {
          void wait() override {}
          void abort() override {}
        };
        return std::make_unique<Nothing>();
      }
    };
    return std::make_unique<Alone>();
  }
  const std::string backend = device.is_cuda() ? "nccl" : impl.options.backend;
  check_backend(backend);
  if (impl.small) barrier();  // a rank that comes late is waited for here, where a lost one is found out
  GroupPlace place;
  // A name of its own for every group: addresses of an older one must not be met again.
  place.store = c10::make_intrusive<c10d::PrefixStore>(fmt::format("group/{}-{}", impl.groups++, name), impl.store);
  place.rank = rank;
  place.size = size;
  place.local_rank = local_rank;
  place.address = impl.launch.address;
  place.several_machines = impl.launch.local_size < size;
  place.limit = impl.options.limit;
  place.patience = impl.options.patience;
  // Connecting cannot be ended from outside and may take several times the limit, so it has a thread to itself; where a
  // rank is lost meanwhile that thread is left behind, in a process that is about to end.
  std::promise<c10::intrusive_ptr<c10d::Backend>> promise;
  auto future = promise.get_future();
  std::thread([promise = std::move(promise), backend, place]() mutable {
    try {
      promise.set_value(make_group(backend, place));
    } catch (...) {
      promise.set_exception(std::current_exception());
    }
  }).detach();
  while (future.wait_for(std::chrono::milliseconds(20)) != std::future_status::ready) impl.watch->check();
  try {
    return std::make_unique<GroupTransport>(future.get(), *impl.watch);
  } catch (const std::invalid_argument&) {
    throw;
  } catch (const std::exception& e) {
    const std::string what = e.what();
    impl.watch->explain(fmt::format("connecting '{}': {}", name, what.substr(0, what.find('\n'))));
  }
}

std::vector<double> World::gather(const std::vector<double>& values) {
  if (size == 1) return values;
  const auto n = static_cast<int64_t>(values.size());
  at::Tensor all = at::empty({size, n}, at::kDouble);
  std::memcpy(all[rank].data_ptr<double>(), values.data(), values.size() * sizeof(double));
  impl_->exchange(all[rank], all.unbind(0));
  return {all.const_data_ptr<double>(), all.const_data_ptr<double>() + all.numel()};
}

std::vector<std::string> World::gather(const std::string& text) {
  if (size == 1) return {text};
  const std::vector<double> sizes = gather(std::vector<double>{static_cast<double>(text.size())});
  std::vector<std::string> all(size);
  std::vector<at::Tensor> theirs;
  for (int r = 0; r < size; ++r) {
    all[r] = r == rank ? text : std::string(static_cast<size_t>(sizes[r]), '\0');
    theirs.push_back(at::from_blob(all[r].data(), {static_cast<int64_t>(all[r].size())}, at::kByte));
  }
  impl_->exchange(theirs[rank], theirs);
  return all;
}

void World::barrier() { gather(std::vector<double>{0.0}); }

std::string World::broadcast(const std::string& text, int from) {
  return gather(rank == from ? text : std::string())[from];
}

int64_t World::broadcast(int64_t value, int from) {
  return size == 1 ? value : std::stoll(broadcast(std::to_string(value), from));
}

bool World::any(bool value) {
  for (double other : gather(std::vector<double>{value ? 1.0 : 0.0}))
    if (other != 0) return true;
  return false;
}

int64_t World::largest(int64_t value) {
  int64_t result = value;
  for (const std::string& other : gather(std::to_string(value))) result = std::max<int64_t>(result, std::stoll(other));
  return result;
}

void World::agree(const std::string& what, const std::string& value) {
  const auto all = gather(value);
  std::string different;
  for (int r = 1; r < size; ++r)
    if (all[r] != all[0]) different += fmt::format("{}rank {} has '{}'", different.empty() ? "" : ", ", r, all[r]);
  if (!different.empty())
    throw std::runtime_error(
        fmt::format("the ranks do not agree on {}: rank 0 has '{}', {}; start every rank with the same program, "
                    "configuration and data",
                    what, all[0], different));
}

std::vector<double> World::sum_lanes(const std::vector<double>& lanes, int64_t columns) {
  if (columns <= 0 || lanes.size() % static_cast<size_t>(columns) != 0)
    throw std::invalid_argument(fmt::format("sum_lanes: {} values are not rows of {}", lanes.size(), columns));
  const auto all = gather(lanes);
  const int64_t rows = static_cast<int64_t>(all.size()) / columns;
  std::vector<double> sums(columns), column(rows);
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t row = 0; row < rows; ++row) column[row] = all[row * columns + c];
    sums[c] = optim::tree_sum(column.data(), rows);
  }
  return sums;
}

void World::check() const {
  if (impl_->watch) impl_->watch->check();
}

void World::leave(const std::string& error) {
  if (impl_->watch) impl_->watch->leave(error);
}

}  // namespace cairn::parallel
