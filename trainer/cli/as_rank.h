// A verb that runs on every rank of a launch.
#pragma once

#include "trainer/environment.h"
#include "trainer/parallel/world.h"

namespace cairn::cli {

// Joins the ranks and runs `body` as one of them: the others learn why this one stopped.
template <class Body>
int as_rank(int threads, Body body) {
  auto world = parallel::World::join();
  set_threads(threads, parallel::read_launch().local_size);
  try {
    const int status = body(*world);
    world->leave();
    return status;
  } catch (const std::exception& error) {
    world->leave(error.what());
    throw;
  }
}

}  // namespace cairn::cli
