// --device of the verbs that run a model.
#pragma once

#include <string>

#include "trainer/cli/cli.h"
#include "trainer/device.h"

namespace cairn::cli {

inline void add_device(CLI::App& command, std::string& device) {
  command.add_option("--device", device, "auto (a GPU where one can be used), cpu, cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
}

// The device that was asked for; a warning goes to stderr where it is a GPU. Throws UsageError where cuda cannot be.
inline at::Device device_of_option(const std::string& wanted) {
  try {
    const at::Device device = choose_device(wanted);
    if (const std::string warning = device_warning(device); !warning.empty()) fmt::print(stderr, "{}\n", warning);
    return device;
  } catch (const std::invalid_argument& error) {
    throw UsageError(fmt::format("--device: {}", error.what()));
  }
}

}  // namespace cairn::cli
