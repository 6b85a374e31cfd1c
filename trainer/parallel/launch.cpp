#include "trainer/parallel/launch.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdlib>
#include <stdexcept>

namespace cairn::parallel {
namespace {

using Get = std::function<const char*(const char*)>;

// One launcher: the variables that carry its numbers. The row applies where rank and size are set, and `marker` too.
struct Row {
  const char *launcher, *rank, *size, *local_rank, *local_size, *address, *marker = nullptr;
};
constexpr Row kTable[] = {
    {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", nullptr},
    {"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE", nullptr},
    // MPICH's and Intel's. Before srun's: under Slurm srun starts their helpers alone, one a machine.
    {"mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", nullptr, "MPI_LOCALRANKID"},
    {"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE",
     "SLURM_LAUNCH_NODE_IPADDR"},
    {"mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", nullptr},  // says nothing of the machine
};

// `prefix_only`: Slurm writes "4(x2)" for four tasks on each of two nodes.
int number(const Get& get, const char* name, int otherwise, bool prefix_only = false) {
  const char* text = get(name);
  if (text == nullptr || *text == '\0') return otherwise;
  const std::string_view view = text;
  int value = 0;
  const auto [end, error] = std::from_chars(view.data(), view.data() + view.size(), value);
  if (error != std::errc() || (end != view.data() + view.size() && !prefix_only) || value < 0)
    throw std::invalid_argument(fmt::format("environment variable {}: '{}' is not a whole number", name, text));
  return value;
}

bool is_set(const Get& get, const char* name) { return get(name) != nullptr && *get(name) != '\0'; }

}  // namespace

Launch read_launch(const Get& get) {
  Launch launch;
  const Row* row = nullptr;
  for (const Row& candidate : kTable)
    if (row == nullptr && is_set(get, candidate.rank) && is_set(get, candidate.size) &&
        (candidate.marker == nullptr || is_set(get, candidate.marker)))
      row = &candidate;
  if (row == nullptr) return launch;

  launch.launcher = row->launcher;
  launch.rank = number(get, row->rank, 0);
  launch.size = number(get, row->size, 1);
  launch.local_size = number(get, row->local_size, launch.size, true);
  launch.local_rank = number(get, row->local_rank, launch.rank);
  if (launch.size < 1 || launch.rank >= launch.size)
    throw std::invalid_argument(fmt::format("environment: {}={} does not lie in 0..{}-1 ({}={})", row->rank,
                                            launch.rank, launch.size, row->size, launch.size));
  if (launch.size == 1) return launch;

  const char* agent = get("TORCHELASTIC_USE_AGENT_STORE");
  launch.launcher_store = agent != nullptr && std::string_view(agent) == "True";
  if (is_set(get, "TORCHELASTIC_RESTART_COUNT")) launch.attempt = get("TORCHELASTIC_RESTART_COUNT");
  // Jobs of one user on one machine must not meet: Slurm's port follows from the job.
  const int slurm_job = launch.launcher == "srun" ? number(get, "SLURM_JOB_ID", 0) : 0;
  launch.port = number(get, "MASTER_PORT", slurm_job > 0 ? 20000 + slurm_job % 20000 : launch.port);
  if (is_set(get, "MASTER_ADDR"))
    launch.address = get("MASTER_ADDR");
  else if (row->address != nullptr && is_set(get, row->address))
    launch.address = get(row->address);
  else if (launch.local_size < launch.size)
    throw std::invalid_argument(
        fmt::format("environment: {}={} but {}={}: the run spans several machines; set MASTER_ADDR (and MASTER_PORT) "
                    "to the machine of rank 0",
                    row->size, launch.size, row->local_size, launch.local_size));
  return launch;
}

Launch read_launch() {
  return read_launch([](const char* name) { return std::getenv(name); });
}

}  // namespace cairn::parallel
