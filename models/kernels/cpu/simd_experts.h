// The vector pieces of experts over raw pointers; see models/kernels/grouped_linear.h.
#pragma once

#include <cstdint>

namespace cairn::kernels {

struct GatedTile {
  int64_t rows = 0, columns = 0;  // columns = F
  int kind = 0;                   // enum Activation; -1: clamped
  float alpha = 1, limit = 0;
  float* gate_up = nullptr;  // [rows, 2F]; backward: becomes its gradient
  float* h = nullptr;        // [rows, F]: forward the hidden values; backward: weight * hidden values, may be dh
  // Backward.
  const float* dh = nullptr;      // [rows, F] of the unweighted output; null: forward
  const float* weight = nullptr;  // [rows]
  float* dot = nullptr;           // [rows] dh . hidden values
};
void gated_tile(const GatedTile& tile);

// y[n] = sum over j, in order, of weight[n, j] * rows[place[n, j]] (weight null: 1), tokens [begin, end); a place of -1
// counts for nothing.
void combine_rows(const float* rows, int64_t width, const int32_t* place, const float* weight, int64_t slots, float* y,
                  int64_t begin, int64_t end);

// a . b
float dot_rows(const float* a, const float* b, int64_t n);
// to += weight * from
void add_row(float weight, const float* from, float* to, int64_t n);

}  // namespace cairn::kernels
