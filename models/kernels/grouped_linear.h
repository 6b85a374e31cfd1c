// Products of many small groups of rows with a weight each: the experts of a mixture. Tokens are sorted by expert once;
// every group's rows begin at a multiple of 8 and are filled up to one with zeros, and the work is cut into tiles by
// the groups' sizes alone: no bit depends on the number of threads, and a row's bits not on the other rows of its
// group.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "models/kernels/activation.h"

namespace cairn::kernels {

// Where the rows of tokens lie that are sorted by expert.
struct ExpertRows {
  int64_t tokens = 0, slots = 0, experts = 0;  // N, k, E
  int64_t padded = 0;                          // P: rows with what fills them up
  std::vector<int64_t> first;                  // [E] first row of a group
  std::vector<int64_t> count;                  // [E] rows of a group that are not filling
  std::vector<int32_t> pair;                   // [P] token * k + slot; -1: filling
  std::vector<int32_t> place;                  // [N * k] row of a pair; -1: dropped

  // On a GPU, instead of all after `experts`: int32 tensors there. Groups follow one another without filling, so there
  // are at most N * k rows.
  struct OnDevice {
    at::Tensor expert;       // [N * k] of a pair
    at::Tensor first;        // [E + 1]; the last: rows in all
    at::Tensor pair, place;  // [N * k]; of `pair` the rows in use alone
    at::Tensor tiles;        // [*, 3]: expert, first row, rows
  } on_device;
};

// experts int32 [N, k] -> rows of each expert in order of token. capacity > 0: of each sequence of N / sequences tokens
// an expert takes the first `capacity` and drops the rest.
ExpertRows sort_by_expert(const at::Tensor& experts, int64_t num_experts, int64_t capacity = 0, int64_t sequences = 1);

// y [P, out] of x [P, in] and weight [E * out, in]: each group's rows times its expert's matrix, plus bias [E * out]
// where defined. What fills up must be zero in x.
at::Tensor grouped_linear_forward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                                  const ExpertRows& rows);
// dy [P, out] -> gradient of x [P, in].
at::Tensor grouped_linear_backward_input(const at::Tensor& dy, const at::Tensor& weight, const ExpertRows& rows);
// dweight [E * out, in] += dy^T x, group by group; dbias [E * out] += column sums; either may be undefined.
void grouped_linear_backward_weight_(const at::Tensor& dweight, const at::Tensor& dbias, const at::Tensor& dy,
                                     const at::Tensor& x, const ExpertRows& rows);

// ---- all of a gated feed-forward of experts: rows are gathered and joined tile by tile

struct ExpertGate {
  Activation activation = Activation::silu;
  bool clamped = false;  // (up + 1) * gate * sigmoid(alpha * gate), gate <= limit, |up| <= limit, instead (gpt-oss)
  double alpha = 1.702, limit = 7;
};

struct ExpertWeights {
  at::Tensor gate_up, gate_up_bias;  // [E * 2F, C]: of each expert F rows of gate, then F of up; [E * 2F] or undefined
  at::Tensor down, down_bias;        // [E * C, F]; [E * C] or undefined
};

struct ExpertsOutput {
  at::Tensor y;        // [N, C] sum over the slots of weight * expert(x)
  at::Tensor gate_up;  // [P, 2F] for the backward pass; undefined where not kept
};

// x [N, C], weights [N, k] of the slots. Up to 8 tokens take the kernel of decoding (linear_decode), more the tiles.
ExpertsOutput experts_forward(const at::Tensor& x, const at::Tensor& weights, const ExpertRows& rows,
                              const ExpertWeights& w, const ExpertGate& gate, bool keep);

struct ExpertsGradient {
  at::Tensor dx;        // [N, C]
  at::Tensor dweights;  // [N, k], zero where a slot was dropped
};
// dy [N, C] -> gradients; what `gradients` defines is added to. `gate_up` is given up.
ExpertsGradient experts_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weights,
                                 const ExpertRows& rows, const ExpertWeights& w, const ExpertGate& gate,
                                 const at::Tensor& gate_up, const ExpertWeights& gradients);

}  // namespace cairn::kernels
