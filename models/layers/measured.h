// What layers report of a pass besides their output: sums of measures by block, and how many rows went to which expert.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace cairn::models {

class Measured {
 public:
  struct Sum {
    double sum = 0, weight = 0;
  };
  // The measure `name` of a block is sum / weight over all that was added to it.
  void add(int64_t block, const std::string& name, double sum, double weight) {
    Sum& s = sums[{name, block}];
    s.sum += sum, s.weight += weight;
  }
  // rows: int64 [E] on the CPU.
  void count_experts(int64_t block, const at::Tensor& rows) {
    at::Tensor& total = experts[block];
    total = total.defined() ? total + rows : rows.clone();
  }

  std::map<std::pair<std::string, int64_t>, Sum> sums;
  std::map<int64_t, at::Tensor> experts;
};

}  // namespace cairn::models
