// Parameters of an optimizer with their state in flat buffers, and the runs of memory that one pass goes over.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "optim/kernels/passes.h"
#include "optim/optimizer.h"

namespace cairn::optim {

// The decay group of a parameter: options.weight_decay where its role is one of options.decay_roles, else 0.
double weight_decay_of(const OptimizerOptions& options, Role role);

class FlatState {
 public:
  struct Slot {
    Parameter parameter;
    double weight_decay = 0;
    std::vector<at::Tensor> state;  // one float32 view a state name, in the parameter's shape
  };
  // A stretch of memory that adjoins in parameters, gradients and state, of one type and one decay.
  struct Stretch {
    kernels::Run run;  // `decay` is filled by the optimizer at each step
    double weight_decay = 0;
  };

  // state_names: at most two ("exp_avg", "exp_avg_sq"); each is one flat buffer of zeros in the order of the
  // parameters. Throws std::invalid_argument naming a parameter whose tensor or gradient has a type, layout or size
  // that does not fit.
  FlatState(std::vector<Parameter> parameters, const OptimizerOptions& options, std::vector<std::string> state_names);

  const std::vector<Slot>& slots() const { return slots_; }
  std::vector<Stretch>& stretches() { return stretches_; }
  bool fast() const { return fast_; }  // everything is on the CPU and the vectorised passes are wanted
  // Everything is on one other device whose passes are wanted (kernels/device.h; there may be none).
  bool on_device() const { return on_device_; }
  at::Device device() const { return device_; }
  std::vector<std::pair<std::string, at::Tensor>> state() const;

 private:
  std::vector<std::string> names_;
  std::vector<Slot> slots_;
  std::vector<Stretch> stretches_;
  std::vector<at::Tensor> buffers_;
  bool fast_;
  bool on_device_ = false;
  at::Device device_ = at::kCPU;
};

// Calls `pass` on pieces of the stretches from all threads: one parallel region for all of them.
void for_blocks(const std::vector<FlatState::Stretch>& stretches, const std::function<void(const kernels::Run&)>& pass);

// Calls `pass(begin, end)` on blocks of [0, n) from all threads; blocks do not depend on the number of threads.
void for_range(int64_t n, const std::function<void(int64_t, int64_t)>& pass);

}  // namespace cairn::optim
