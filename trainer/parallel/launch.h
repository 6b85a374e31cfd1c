// What the launcher told this process through its environment: torchrun, mpirun (Open MPI, MPICH,
// Intel MPI), Slurm's srun, or nobody.
#pragma once

#include <functional>
#include <string>

namespace cairn::parallel {

struct Launch {
  int rank = 0, size = 1, local_rank = 0, local_size = 1;
  std::string address = "127.0.0.1";  // of the store
  int port = 29500;
  bool launcher_store = false;  // torchrun's agent hosts the store; otherwise rank 0 does
  std::string attempt = "0";    // torchrun's restart count: keeps the keys of attempts apart
  std::string launcher = "none";
};

// A pure function of the variables (`get` returns nullptr where one is unset). The first row that applies:
//   torchrun  RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE (+ TORCHELASTIC_USE_AGENT_STORE, TORCHELASTIC_RESTART_COUNT)
//   mpirun    OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK, _LOCAL_SIZE; PMI_RANK, PMI_SIZE, MPI_LOCALRANKID,
//   MPI_LOCALNRANKS srun      SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID, SLURM_STEP_TASKS_PER_NODE; address
//   SLURM_LAUNCH_NODE_IPADDR
// MASTER_ADDR and MASTER_PORT hold for all of them. None: one rank.
// Throws std::invalid_argument naming the variable: not a number, a rank outside [0, size), a world of several machines
// without an address.
Launch read_launch(const std::function<const char*(const char*)>& get);
Launch read_launch();  // of this process

}  // namespace cairn::parallel
