#include "models/kernels/causal_conv.h"

#include "models/kernels/check.h"
#include "models/kernels/cuda/table.h"

namespace cairn::kernels {
namespace {

struct Prepared {
  ConvCall call;
  at::Tensor weight;  // [taps, W]
  std::vector<int32_t> before, after;
};

Prepared prepare(const at::Tensor& x, const at::Tensor& weight, const ConvOptions& options, const char* op) {
  if (!x.defined() || x.dim() != 2)
    throw std::invalid_argument(fmt::format("[{}] x: expected [N, columns], got {}", op, describe(x)));
  strided_rows<const float>(x, op, "x");
  if (!weight.defined() || weight.dim() != 2 || weight.size(1) < 1 || weight.size(1) > kMaxTaps) {
    throw std::invalid_argument(
        fmt::format("[{}] weight: expected [W, taps] with 1 to {} taps, got {}", op, kMaxTaps, describe(weight)));
  }
  check_floats(weight, weight.sizes(), op, "weight");
  const int64_t rows = x.size(0), width = weight.size(0);
  int64_t covered = 0;
  for (const ConvRun& run : options.runs) {
    covered += run.count;
    if (run.from < 0 || run.to < 0 || run.count < 0 || run.from + run.count > x.size(1) || run.to + run.count > width) {
      throw std::invalid_argument(fmt::format("[{}] runs: columns {} to {} of {} become {} to {} of {}", op, run.from,
                                              run.from + run.count, x.size(1), run.to, run.to + run.count, width));
    }
  }
  if (covered != width)
    throw std::invalid_argument(fmt::format("[{}] runs: they cover {} columns, expected {}", op, covered, width));
  if (options.batch < 1 || rows % options.batch != 0)
    throw std::invalid_argument(fmt::format("[{}] batch: {} does not divide {} rows", op, options.batch, rows));
  const int32_t* segment = nullptr;
  if (options.segments.defined()) {
    check_tensor(options.segments, at::kInt, {rows}, op, "segments");
    segment = options.segments.const_data_ptr<int32_t>();
  }
  Prepared p;
  p.weight = weight.t().contiguous();
  const int64_t taps = weight.size(1), length = rows / options.batch;
  p.before.resize(rows), p.after.resize(rows);
  const auto joined = [&](int64_t n) {  // rows n - 1 and n are of one document
    return n > 0 && n < rows && n % length != 0 && (segment == nullptr || segment[n] == segment[n - 1]);
  };
  const int32_t most = static_cast<int32_t>(taps - 1);
  for (int64_t n = 0; n < rows; ++n) p.before[n] = joined(n) ? std::min(most, p.before[n - 1] + 1) : 0;
  for (int64_t n = rows - 1; n >= 0; --n) p.after[n] = joined(n + 1) ? std::min(most, p.after[n + 1] + 1) : 0;
  p.call.rows = rows, p.call.width = width, p.call.taps = taps;
  p.call.runs = options.runs.data(), p.call.run_count = static_cast<int64_t>(options.runs.size());
  p.call.x = x.const_data_ptr<float>(), p.call.x_stride = x.stride(0);
  p.call.weight = p.weight.const_data_ptr<float>();
  p.call.before = p.before.data(), p.call.after = p.after.data();
  return p;
}

}  // namespace

at::Tensor causal_conv_forward(const at::Tensor& x, const at::Tensor& weight, const ConvOptions& options) {
  if (cuda::available(x)) return cuda::table()->causal_conv_forward(x, weight, options);
  const Prepared p = prepare(x, weight, options, "causal_conv_forward");
  const at::Tensor y = at::empty({p.call.rows, p.call.width}, x.options());
  simd_conv_forward(p.call, y.mutable_data_ptr<float>());
  return y;
}

void causal_conv_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight,
                          const ConvOptions& options, const at::Tensor& dx, const at::Tensor& dweight) {
  if (cuda::available(x)) return cuda::table()->causal_conv_backward(dy, x, weight, options, dx, dweight);
  const char* op = "causal_conv_backward";
  const Prepared p = prepare(x, weight, options, op);
  check_floats(dy, {p.call.rows, p.call.width}, op, "dy");
  strided_rows<float>(dx, op, "dx");
  if (dx.sizes() != x.sizes())
    throw std::invalid_argument(fmt::format("[{}] dx: expected {}, got {}", op, x.sizes().vec(), describe(dx)));
  if (dweight.defined()) check_floats(dweight, weight.sizes(), op, "dweight");
  const int64_t pieces = static_cast<int64_t>(piece_count(static_cast<size_t>(p.call.rows)));
  const at::Tensor partial = at::empty({pieces, p.call.taps, p.call.width}, x.options());
  const at::Tensor sums = dweight.defined() ? at::zeros({p.call.taps, p.call.width}, x.options()) : at::Tensor();
  simd_conv_backward(p.call, dy.mutable_data_ptr<float>(), dx.mutable_data_ptr<float>(), dx.stride(0),
                     mutable_floats_or_null(sums), partial.mutable_data_ptr<float>());
  if (dweight.defined()) at::Tensor(dweight).add_(sums.t());
}

at::Tensor causal_conv_decode(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& history,
                              const ConvOptions& options) {
  if (cuda::available(x)) return cuda::table()->causal_conv_decode(x, weight, history, options);
  const char* op = "causal_conv_decode";
  if (options.batch != 1 || options.segments.defined())
    throw std::invalid_argument(fmt::format("[{}] expected one sequence of one document", op));
  prepare(x, weight, options, op);
  const int64_t past = weight.size(1) - 1;
  check_floats(history, {past, x.size(1)}, op, "history");
  const at::Tensor all = at::cat({history, x});
  Prepared p = prepare(all, weight, options, op);
  p.call.rows = x.size(0);
  p.call.x += past * p.call.x_stride;
  p.call.before += past;
  const at::Tensor y = at::empty({p.call.rows, p.call.width}, x.options());
  simd_conv_forward(p.call, y.mutable_data_ptr<float>());
  at::Tensor(history).copy_(all.narrow(0, x.size(0), past));
  return y;
}

}  // namespace cairn::kernels
