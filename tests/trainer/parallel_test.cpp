// Data-parallel training over real processes on this machine: each test starts this program again as the ranks, with
// torchrun's variables. Bits must not depend on the number of ranks; a rank that dies must be named by the others.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ATen/CPUGeneratorImpl.h>

#include <array>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include "optim/norm.h"
#include "optim/optimizer.h"
#include "trainer/parallel/gradients.h"
#include "trainer/parallel/group_transport.h"
#include "trainer/parallel/lane_tree.h"
#include "trainer/parallel/world.h"

extern char** environ;

namespace cairn::parallel {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// ---------------------------------------------------------------- lanes in one process

at::Tensor lane_gradient(int lane, int step, int64_t n) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(1000 * step + lane);
  return at::randn({n}, generator) * at::pow(10.0, at::randint(-3, 4, {n}, generator));
}

TEST(LaneTree, JoinsAsATreeDoes) {
  const int64_t n = 1000;
  at::Tensor gradient = at::zeros({n});
  LaneTree tree(gradient, 8);
  for (int step = 0; step < 2; ++step) {
    gradient.zero_();
    std::vector<at::Tensor> sums;
    for (int lane = 0; lane < 8; ++lane) {
      sums.push_back(lane_gradient(lane, step, n));
      gradient.add_(sums.back());
      if (lane < 7) tree.next_lane();
    }
    if (step == 1) {  // in parts, as they become final
      tree.join(600, 400);
      tree.join(100, 250);
    }
    tree.finish();
    for (; sums.size() > 1; sums.resize(sums.size() / 2))
      for (size_t i = 0; i < sums.size() / 2; ++i) sums[i] = sums[2 * i] + sums[2 * i + 1];
    EXPECT_TRUE(at::equal(gradient, sums[0])) << step;
    EXPECT_EQ(tree.buffers(), 3);
  }
}

TEST(LaneTree, RefusesWhatItCannotJoin) {
  at::Tensor gradient = at::zeros({8});
  EXPECT_THROW(LaneTree(gradient, 3), std::invalid_argument);
  LaneTree tree(gradient, 2);
  EXPECT_THROW(tree.join(0, 8), std::logic_error);
  tree.next_lane();
  EXPECT_THROW(tree.next_lane(), std::logic_error);
}

TEST(Buckets, CoverTheBufferFromItsEnd) {
  for (int64_t total : {int64_t{1}, optim::kPiece, 10 * optim::kPiece + 5, 1000 * optim::kPiece + 77})
    for (int ranks : {1, 2, 4, 8})
      for (int64_t target : {int64_t{1}, 3 * optim::kPiece, int64_t{1} << 20}) {
        const auto buckets = plan_buckets(total, ranks, target);
        EXPECT_NO_THROW(check_buckets(buckets, total, ranks)) << total << " " << ranks << " " << target;
        EXPECT_EQ(buckets.front().offset + buckets.front().length, total);
        EXPECT_EQ(buckets.back().offset, 0);
      }
}

TEST(Buckets, AreCutWhereAllowedOnly) {
  const int64_t k = optim::kPiece;
  const std::vector<int64_t> cuts = {0, 3 * k, 4 * k, 20 * k, 21 * k, 40 * k};
  const auto buckets = plan_buckets(45 * k + 9, 4, 8 * k, cuts);
  EXPECT_NO_THROW(check_buckets(buckets, 45 * k + 9, 4));
  EXPECT_GT(buckets.size(), 2u);
  for (const auto& bucket : buckets)
    for (int64_t split : bucket.splits)
      EXPECT_TRUE(split == 45 * k + 9 || std::find(cuts.begin(), cuts.end(), split) != cuts.end()) << split;
  EXPECT_THROW(plan_buckets(100, 2, 10, {5, 5}), std::invalid_argument);
  EXPECT_THROW(plan_buckets(100, 2, 10, {5, 101}), std::invalid_argument);
  EXPECT_THROW(check_buckets({{0, 100, {0, 60, 50}}}, 100, 2), std::invalid_argument);
}

// Chunks that cannot be cut go to the ranks in turns: over all buckets each owns about the same.
TEST(Buckets, ShareWholeMatrices) {
  std::vector<int64_t> cuts;
  int64_t total = 0;
  for (int i = 0; i < 96; ++i) {
    cuts.push_back(total);
    total += std::array{64 * 64, 100 * 100, 24 * 999}[i % 3];
  }
  for (int ranks : {2, 3, 4}) {
    const auto buckets = plan_buckets(total, ranks, ranks * 24 * 999, cuts);
    EXPECT_NO_THROW(check_buckets(buckets, total, ranks));
    std::vector<int64_t> owned(ranks, 0);
    for (const auto& bucket : buckets)
      for (int r = 0; r < ranks; ++r) {
        owned[r] += bucket.splits[r + 1] - bucket.splits[r];
        EXPECT_TRUE(std::binary_search(cuts.begin(), cuts.end(), bucket.splits[r]) || bucket.splits[r] == total);
      }
    for (int64_t n : owned) EXPECT_NEAR(n, total / ranks, 2 * 24 * 999) << ranks;
  }
}

// ---------------------------------------------------------------- what launchers say

Launch launched(std::map<std::string, std::string> variables) {
  return read_launch([&](const char* name) {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

TEST(LaunchVariables, OfEveryLauncher) {
  EXPECT_EQ(launched({}).size, 1);
  EXPECT_EQ(launched({{"SLURM_PROCID", "0"}}).size, 1);  // a batch script's own process
  Launch l = launched({{"RANK", "3"},
                       {"WORLD_SIZE", "8"},
                       {"LOCAL_RANK", "1"},
                       {"LOCAL_WORLD_SIZE", "2"},
                       {"MASTER_ADDR", "head"},
                       {"MASTER_PORT", "1234"},
                       {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                       {"TORCHELASTIC_RESTART_COUNT", "2"}});
  EXPECT_EQ(std::make_tuple(l.rank, l.size, l.local_rank, l.local_size, l.address, l.port, l.launcher_store, l.attempt),
            std::make_tuple(3, 8, 1, 2, std::string("head"), 1234, true, std::string("2")));
  l = launched({{"OMPI_COMM_WORLD_RANK", "1"},
                {"OMPI_COMM_WORLD_SIZE", "2"},
                {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}});
  EXPECT_EQ(std::make_tuple(l.rank, l.size, l.address, l.launcher_store),
            std::make_tuple(1, 2, std::string("127.0.0.1"), false));
  l = launched({{"SLURM_PROCID", "5"},
                {"SLURM_STEP_NUM_TASKS", "8"},
                {"SLURM_LOCALID", "1"},
                {"SLURM_STEP_TASKS_PER_NODE", "4(x2)"},
                {"SLURM_LAUNCH_NODE_IPADDR", "10.0.0.1"},
                {"SLURM_JOB_ID", "123456"}});
  EXPECT_EQ(std::make_tuple(l.rank, l.size, l.local_rank, l.local_size, l.address, l.port),
            std::make_tuple(5, 8, 1, 4, std::string("10.0.0.1"), 20000 + 123456 % 20000));
  // MPICH and Intel; the variables of srun are those of the helper that started the rank.
  l = launched({{"PMI_RANK", "3"},
                {"PMI_SIZE", "4"},
                {"MPI_LOCALRANKID", "1"},
                {"MPI_LOCALNRANKS", "2"},
                {"MASTER_ADDR", "head"},
                {"SLURM_PROCID", "0"},
                {"SLURM_STEP_NUM_TASKS", "2"}});
  EXPECT_EQ(std::make_tuple(l.rank, l.size, l.local_rank, l.local_size, l.address, l.launcher),
            std::make_tuple(3, 4, 1, 2, std::string("head"), std::string("mpirun")));
  l = launched({{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}});
  EXPECT_EQ(std::make_tuple(l.rank, l.size, l.local_rank, l.local_size), std::make_tuple(1, 2, 1, 2));
  // srun --mpi=pmi2 sets both.
  l = launched({{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"SLURM_PROCID", "1"}, {"SLURM_STEP_NUM_TASKS", "2"}});
  EXPECT_EQ(l.launcher, "srun");
  EXPECT_THROW(launched({{"RANK", "8"}, {"WORLD_SIZE", "8"}}), std::invalid_argument);
  EXPECT_THROW(launched({{"RANK", "x"}, {"WORLD_SIZE", "8"}}), std::invalid_argument);
  EXPECT_THROW(
      launched({{"OMPI_COMM_WORLD_RANK", "1"}, {"OMPI_COMM_WORLD_SIZE", "4"}, {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}}),
      std::invalid_argument);  // two machines, no address
}

// ---------------------------------------------------------------- several processes

int free_port() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  bind(fd, reinterpret_cast<sockaddr*>(&address), size);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  close(fd);
  return ntohs(address.sin_port);
}

struct Outcome {
  int status = 0;      // exit code, or -signal
  std::string output;  // what the rank wrote to its file
  double seconds = 0;  // from the start of all
};

// Ranks running TEST(ParallelRank, DISABLED_<role>) of this program.
class Ranks {
 public:
  Ranks(const std::string& role, int size, const std::map<std::string, std::string>& extra = {})
      : begin_(Clock::now()) {
    folder_ = std::filesystem::temp_directory_path() / fmt::format("cairn-ranks-{}-{}", getpid(), counter_++);
    std::filesystem::create_directories(folder_);
    const int port = free_port();
    for (int rank = 0; rank < size; ++rank) {
      std::map<std::string, std::string> variables = {{"RANK", std::to_string(rank)},
                                                      {"WORLD_SIZE", std::to_string(size)},
                                                      {"LOCAL_RANK", std::to_string(rank)},
                                                      {"LOCAL_WORLD_SIZE", std::to_string(size)},
                                                      {"MASTER_ADDR", "127.0.0.1"},
                                                      {"MASTER_PORT", std::to_string(port)},
                                                      {"OMP_NUM_THREADS", "1"},
                                                      {"CAIRN_TEST_OUT", folder_.string()}};
      for (const auto& [name, value] : extra) variables[name] = value;
      std::vector<std::string> block;
      for (char** entry = environ; *entry != nullptr; ++entry)
        if (!variables.contains(std::string(*entry).substr(0, std::string(*entry).find('='))))
          block.emplace_back(*entry);
      for (const auto& [name, value] : variables) block.push_back(name + "=" + value);
      std::vector<char*> environment;
      for (auto& entry : block) environment.push_back(entry.data());
      environment.push_back(nullptr);
      std::string filter = "--gtest_filter=ParallelRank.DISABLED_" + role, also = "--gtest_also_run_disabled_tests",
                  brief = "--gtest_brief=1", self = "/proc/self/exe";
      self = std::filesystem::read_symlink(self).string();
      char* arguments[] = {self.data(), filter.data(), also.data(), brief.data(), nullptr};
      posix_spawn_file_actions_t actions;
      posix_spawn_file_actions_init(&actions);
      posix_spawn_file_actions_addopen(&actions, 1, (file(rank) + ".log").c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0600);
      posix_spawn_file_actions_adddup2(&actions, 1, 2);
      pid_t pid = 0;
      EXPECT_EQ(posix_spawn(&pid, self.c_str(), &actions, nullptr, arguments, environment.data()), 0);
      posix_spawn_file_actions_destroy(&actions);
      pids_.push_back(pid);
    }
  }
  ~Ranks() {
    for (pid_t pid : pids_)
      if (pid > 0) kill(pid, SIGKILL), waitpid(pid, nullptr, 0);
    std::filesystem::remove_all(folder_);
  }
  pid_t pid(int rank) const { return pids_[rank]; }
  std::string read(int rank) const {
    std::ifstream in(file(rank));
    return {std::istreambuf_iterator<char>(in), {}};
  }
  std::string log(int rank) const {
    std::ifstream in(file(rank) + ".log");
    return {std::istreambuf_iterator<char>(in), {}};
  }
  // Until the rank has written `text`.
  bool await(int rank, const std::string& text, double limit = 60) const {
    for (const auto begin = Clock::now(); seconds_since(begin) < limit;
         std::this_thread::sleep_for(std::chrono::milliseconds(10)))
      if (read(rank).find(text) != std::string::npos) return true;
    return false;
  }
  Outcome wait(int rank, double limit = 120) {
    Outcome outcome;
    const auto begin = Clock::now();
    while (true) {
      int status = 0;
      if (waitpid(pids_[rank], &status, WNOHANG) == pids_[rank]) {
        pids_[rank] = -1;
        outcome.status = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
        break;
      }
      if (seconds_since(begin) > limit) {
        outcome.status = -999;
        break;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    outcome.seconds = seconds_since(begin_);
    outcome.output = read(rank);
    return outcome;
  }

 private:
  std::string file(int rank) const { return (folder_ / std::to_string(rank)).string(); }
  static inline int counter_ = 0;
  std::filesystem::path folder_;
  std::vector<pid_t> pids_;
  Clock::time_point begin_;
};

void say(const std::string& text) {
  std::ofstream(std::string(std::getenv("CAIRN_TEST_OUT")) + "/" + std::getenv("RANK"), std::ios::app) << text << "\n"
                                                                                                       << std::flush;
}
std::string variable(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : value;
}
WorldOptions limited() {
  WorldOptions options;
  options.limit = std::chrono::milliseconds(std::stoi(variable("CAIRN_TEST_LIMIT", "20000")));
  return options;
}

// Three steps of a made-up training of L lanes: gradients of a lane hang on the lane and the step alone.
TEST(ParallelRank, DISABLED_train) {
  auto world = World::join(limited());
  const int lanes = 8, local = lanes / world->size;
  const bool zero = variable("CAIRN_TEST_ZERO", "0") == "1";
  const int64_t n = 70 * optim::kPiece + 321;
  at::Tensor weights = lane_gradient(99, 99, n), gradient = at::zeros({n});
  LaneTree tree(gradient, local);
  // Odd cuts: through pieces of the norm, several of them in one piece, and some chunks shorter than a piece.
  std::vector<int64_t> cuts;
  if (variable("CAIRN_TEST_CUTS", "") == "odd")
    for (int64_t at = 0, step = 1; at < n; at += step, step = step * 7 % 20011) cuts.push_back(at);
  Reducer reducer(*world, gradient, plan_buckets(n, world->size, 16 * optim::kPiece, cuts), {.gather = !zero});
  std::vector<optim::Parameter> parameters;
  for (auto [offset, length] : reducer.owned())
    parameters.push_back({fmt::format("p{}", offset), weights.narrow(0, offset, length),
                          gradient.narrow(0, offset, length), optim::Role::matrix});
  auto optimizer = optim::make_optimizer(optim::defaults("adamw"), parameters);
  for (int step = 1; step <= 3; ++step) {
    gradient.zero_();
    std::vector<double> losses;
    reducer.begin();
    for (int lane = 0; lane < local; ++lane) {
      const at::Tensor part = lane_gradient(world->rank * local + lane, step, n);
      losses.push_back(part.sum().item<double>());
      losses.push_back(1.0);
      if (lane + 1 < local) {
        gradient.add_(part);
        tree.next_lane();
        continue;
      }
      for (int64_t end = n; end > 0;) {  // the backward pass ends with the first parameters
        const int64_t begin = std::max<int64_t>(0, end - 9'999);
        gradient.narrow(0, begin, end - begin).add_(part.narrow(0, begin, end - begin));
        tree.join(begin, end - begin);
        reducer.ready(begin, end - begin);
        end = begin;
      }
    }
    tree.finish();
    reducer.finish();
    const double norm = reducer.norm();
    const auto sums = world->sum_lanes(losses, 2);
    optimizer->step(1e-2, optim::clip_coefficient(norm, 1.0));
    reducer.gather_owned(weights);
    const at::Tensor bits = weights.view(at::kInt).to(at::kLong);
    say(fmt::format("step {} norm {:a} loss {:a} count {} weights {}", step, norm, sums[0], sums[1],
                    (bits * at::arange(1, n + 1)).sum().item<int64_t>()));
  }
  world->leave();
}

TEST(Parallel, BitsAreThoseOfOneRank) {
  std::string expected;
  for (int size : {1, 2, 4})
    for (const char* zero : {"0", "1", "1 odd"}) {
      if (size == 1 && *zero == '1') continue;
      const bool odd = std::string(zero) == "1 odd";
      Ranks ranks("train", size,
                  {{"CAIRN_TEST_ZERO", std::string(zero, 1)}, {"CAIRN_TEST_CUTS", odd ? "odd" : "usual"}});
      for (int rank = 0; rank < size; ++rank) {
        const Outcome outcome = ranks.wait(rank);
        ASSERT_EQ(outcome.status, 0) << "rank " << rank << " of " << size << "\n" << ranks.log(rank);
        if (expected.empty()) expected = outcome.output;
        EXPECT_EQ(outcome.output, expected) << "rank " << rank << " of " << size << ", zero " << zero;
      }
    }
  EXPECT_EQ(std::count(expected.begin(), expected.end(), '\n'), 3);

  // The same under torchrun, whose agent holds the store.
  const std::filesystem::path python = std::filesystem::path(CAIRN_SOURCE_DIR) / ".venv/bin/python";
  if (!std::filesystem::exists(python)) GTEST_SKIP() << "no .venv/bin/python for torchrun";
  const auto folder = std::filesystem::temp_directory_path() / fmt::format("cairn-torchrun-{}", getpid());
  std::filesystem::create_directories(folder);
  const std::string command = fmt::format(
      "CAIRN_TEST_OUT='{}' OMP_NUM_THREADS=1 '{}' -m torch.distributed.run --standalone --no-python --nproc-per-node 2 "
      "'{}' "
      "--gtest_filter=ParallelRank.DISABLED_train --gtest_also_run_disabled_tests --gtest_brief=1 > '{}/log' 2>&1",
      folder.string(), python.string(), std::filesystem::read_symlink("/proc/self/exe").string(), folder.string());
  const auto whole = [&](const char* name) {
    std::ifstream in(folder / name);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  EXPECT_EQ(std::system(command.c_str()), 0) << whole("log");
  EXPECT_EQ(whole("0"), expected);
  EXPECT_EQ(whole("1"), expected);
  std::filesystem::remove_all(folder);
}

TEST(ParallelRank, DISABLED_talk) {
  auto world = World::join(limited());
  const int me = world->rank, size = world->size;
  world->barrier();
  const auto texts = world->gather(std::string(static_cast<size_t>(me) * 3, 'x') + std::to_string(me));
  for (int r = 0; r < size; ++r) EXPECT_EQ(texts[r], std::string(static_cast<size_t>(r) * 3, 'x') + std::to_string(r));
  EXPECT_EQ(world->broadcast("of " + std::to_string(me), 1), "of 1");
  EXPECT_EQ(world->broadcast(int64_t{1} << 60 | me), int64_t{1} << 60);
  EXPECT_EQ(world->largest(me * 10), (size - 1) * 10);
  EXPECT_TRUE(world->any(me == 1));
  EXPECT_FALSE(world->any(false));
  EXPECT_NO_THROW(world->agree("the seed", "1"));
  try {
    world->agree("the configuration", me == 2 ? "b" : "a");
    ADD_FAILURE() << "no disagreement found";
  } catch (const std::runtime_error& e) {
    say(e.what());
  }
  world->leave();
}

TEST(Parallel, SmallExchangesAndAgreement) {
  Ranks ranks("talk", 3);
  for (int rank = 0; rank < 3; ++rank) {
    const Outcome outcome = ranks.wait(rank);
    EXPECT_EQ(outcome.status, 0) << ranks.log(rank);
    EXPECT_EQ(outcome.output,
              "the ranks do not agree on the configuration: rank 0 has 'a', rank 2 has 'b'; start every rank with the "
              "same program, "
              "configuration and data\n");
  }
}

// Steps without end, until a rank is lost.
TEST(ParallelRank, DISABLED_run) {
  std::unique_ptr<World> world;
  try {
    world = World::join(limited());
    const int64_t n = 40 * optim::kPiece;
    at::Tensor gradient = at::ones({n});
    Reducer reducer(*world, gradient, plan_buckets(n, world->size, 8 * optim::kPiece), {});
    Reducer another(*world, gradient, plan_buckets(n, world->size, 8 * optim::kPiece), {});  // connections of its own
    for (int step = 0; step < 100'000; ++step) {
      gradient.fill_(1);
      reducer.begin();
      if (variable("CAIRN_TEST_FAIL", "") == std::to_string(world->rank) && step == 5)
        throw std::runtime_error("shard 7 is truncated");
      reducer.ready(n / 2, n / 2);
      reducer.finish();
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      if (step == 3) say("runs");
    }
  } catch (const std::exception& e) {
    say(fmt::format("error: {}", e.what()));
    if (world) world->leave(e.what());
    world.reset();
    say("ended");
  }
}

void expect_lost(int size, int victim, int signal, const char* limit, double within) {
  Ranks ranks("run", size, {{"CAIRN_TEST_LIMIT", limit}});
  for (int rank = 0; rank < size; ++rank) ASSERT_TRUE(ranks.await(rank, "runs")) << ranks.log(rank);
  const auto begin = Clock::now();
  kill(ranks.pid(victim), signal);
  for (int rank = 0; rank < size; ++rank) {
    if (rank == victim) continue;
    const Outcome outcome = ranks.wait(rank, within + 20);
    EXPECT_EQ(outcome.status, 0) << "rank " << rank << "\n" << ranks.log(rank);
    EXPECT_NE(outcome.output.find(
                  fmt::format("error: rank {} of {} is lost (process {} on", victim, size, ranks.pid(victim))),
              std::string::npos)
        << "rank " << rank << " said: " << outcome.output;
    EXPECT_NE(outcome.output.find("ended"), std::string::npos);
  }
  EXPECT_LT(seconds_since(begin), within);
}

TEST(Parallel, AKilledRankEndsTheOthersAndIsNamed) { expect_lost(4, 2, SIGKILL, "20000", 10); }
TEST(Parallel, TheHostOfTheStoreIsNamedToo) { expect_lost(2, 0, SIGKILL, "20000", 10); }
TEST(Parallel, AStoppedRankIsLostAfterTheLimit) { expect_lost(2, 1, SIGSTOP, "3000", 10); }

TEST(Parallel, AnErrorOfOneRankReachesTheOthers) {
  Ranks ranks("run", 4, {{"CAIRN_TEST_FAIL", "1"}});
  for (int rank : {0, 2, 3}) {
    const Outcome outcome = ranks.wait(rank, 30);
    EXPECT_EQ(outcome.status, 0) << ranks.log(rank);
    EXPECT_NE(outcome.output.find("error: rank 1 of 4 stopped (process"), std::string::npos) << outcome.output;
    EXPECT_NE(outcome.output.find("shard 7 is truncated"), std::string::npos) << outcome.output;
  }
  EXPECT_LT(ranks.wait(1).seconds, 20);
}

TEST(Parallel, ARankThatDoesNotComeIsNamed) {
  Ranks ranks("run", 2, {{"WORLD_SIZE", "3"}, {"LOCAL_WORLD_SIZE", "3"}, {"CAIRN_TEST_LIMIT", "2000"}});
  for (int rank = 0; rank < 2; ++rank)
    EXPECT_NE(ranks.wait(rank, 30).output.find("error: rank 2 of 3 did not come within 2.0 s"), std::string::npos)
        << ranks.read(rank);
}

// Connecting waits for a rank that was there a moment ago.
TEST(ParallelRank, DISABLED_connect) {
  auto world = World::join(limited());
  if (world->rank == 1) {
    world->barrier();  // the one that the others' transport() begins with
    _exit(0);
  }
  try {
    world->transport("another");
  } catch (const std::exception& e) {
    say(e.what());
    world->leave(e.what());
  }
}
TEST(Parallel, ARankLostWhileConnectingIsNamed) {
  Ranks ranks("connect", 4, {{"CAIRN_TEST_LIMIT", "2000"}});
  for (int rank : {0, 2, 3}) {
    const Outcome outcome = ranks.wait(rank, 30);
    EXPECT_EQ(outcome.status, 0) << ranks.log(rank);
    EXPECT_EQ(outcome.output.find("rank 1 of 4 is lost"), 0u) << outcome.output;
    EXPECT_LT(outcome.seconds, 20);
  }
}

// ---------------------------------------------------------------- groups that take the messages of an exchange as one

struct DoneWork : c10d::Work {
  bool wait(std::chrono::milliseconds) override { return true; }
};

struct CoalescingGroup : c10d::Backend {
  CoalescingGroup() : Backend(0, 3) {}
  bool supportsCoalescing() const override { return true; }
  void startCoalescing() override { said += "("; }
  c10::intrusive_ptr<c10d::Work> endCoalescing() override {
    said += ")";
    return c10::make_intrusive<DoneWork>();
  }
  c10::intrusive_ptr<c10d::Work> send(std::vector<at::Tensor>&, int to, int) override {
    said += fmt::format("s{}", to);
    return nullptr;  // as NCCL's inside of such a pair
  }
  c10::intrusive_ptr<c10d::Work> recv(std::vector<at::Tensor>&, int from, int) override {
    said += fmt::format("r{}", from);
    return nullptr;
  }
  std::string said;
};

TEST(GroupTransport, GivesMessagesOfOneExchangeTogether) {
  Watch watch(c10::make_intrusive<c10d::HashStore>(), 0, 1, -1, std::chrono::milliseconds(1000));
  const auto group = c10::make_intrusive<CoalescingGroup>();
  GroupTransport transport(group, watch);
  const at::Tensor some = at::ones({3}), none = at::ones({0});
  transport.post({{some, 1}, {some, 2}}, {{some, 1}, {none, 2}})->wait();
  EXPECT_EQ(group->said, "(r1s1s2)");
  group->said.clear();
  transport.post({{none, 1}}, {{none, 1}})->wait();
  EXPECT_EQ(group->said, "");
  watch.leave("");
}

TEST(Parallel, BackendsThatAreNotThereAreRefused) {
  Launch launch;
  EXPECT_NO_THROW(World::join(launch, {.backend = "nccl"}));  // alone: no group is made
  launch.size = 2;
  launch.port = free_port();
  try {
    World::join(launch, {.backend = "nccl"});
    FAIL();
  } catch (const std::invalid_argument& e) {
    EXPECT_STREQ(e.what(),
                 "no communication backend 'nccl' (there is gloo): nccl comes with the CUDA module, which this process "
                 "has not loaded");
  }
}

}  // namespace
}  // namespace cairn::parallel
