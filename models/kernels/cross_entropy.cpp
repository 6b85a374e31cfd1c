#include "models/kernels/cross_entropy.h"

#include "models/kernels/check.h"
#include "models/kernels/cpu/simd_cross_entropy.h"
#include "models/kernels/cpu/simd_norm.h"
#include "models/kernels/head_rows.h"

namespace cairn::kernels {
namespace {

// Pairwise, so that the rounding does not grow with n; a fixed tree.
double tree_sum(const double* x, int64_t n) {
  if (n <= 8) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += x[i];
    return sum;
  }
  const int64_t half = (n + 1) / 2;
  return tree_sum(x, half) + tree_sum(x + half, n - half);
}

}  // namespace

CrossEntropyOutput linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& bias,
                                        const at::Tensor& targets, const CrossEntropyOptions& options, bool gradients,
                                        const at::Tensor& dweight, const at::Tensor& dbias) {
  const char* op = "linear_cross_entropy";
  if (!hidden.defined() || hidden.dim() != 2 || !weight.defined() || weight.dim() != 2) {
    throw std::invalid_argument(fmt::format("[{}] expected hidden [N, D] and weight [V, D], got {} and {}", op,
                                            describe(hidden), describe(weight)));
  }
  const int64_t N = hidden.size(0), D = hidden.size(1), V = weight.size(0);
  check_floats(hidden, {N, D}, op, "hidden");
  check_floats(weight, {V, D}, op, "weight");
  check_tensor(targets, at::kInt, {N}, op, "targets");
  if (bias.defined()) check_floats(bias, {V}, op, "bias");
  if (gradients && dweight.defined()) check_floats(dweight, {V, D}, op, "dweight");
  if (gradients && dbias.defined()) check_floats(dbias, {V}, op, "dbias");
  if (options.chunk_rows < 0 || options.chunk_rows % 8 != 0) {
    throw std::invalid_argument(fmt::format("[{}] chunk_rows: {} is not a multiple of 8", op, options.chunk_rows));
  }
  const at::NoGradGuard no_grad;
  const std::vector<int64_t> rows = predicted_rows(targets, V, op);
  const int64_t M = static_cast<int64_t>(rows.size());
  const int64_t most = options.chunk_rows > 0 ? options.chunk_rows : default_chunk_rows(V);
  const int64_t held = std::min(most, (M + 7) / 8 * 8);

  CrossEntropyOutput out;
  out.row_nll = at::zeros({N}, hidden.options());
  if (gradients) out.dhidden = M == N ? at::empty({N, D}, hidden.options()) : at::zeros({N, D}, hidden.options());
  if (M == 0) return out;

  const at::Tensor logits_buffer = at::empty({held, V}, hidden.options());
  at::Tensor hidden_buffer, dhidden_buffer;  // [held, D], made where a chunk needs them
  std::vector<double> nll(M), lse(M), z(M);
  std::vector<uint8_t> correct(M);
  std::vector<int32_t> target(M);
  for (int64_t r = 0; r < M; ++r) target[r] = targets.const_data_ptr<int32_t>()[rows[r]];

  for (int64_t begin = 0; begin < M; begin += most) {
    const int64_t count = std::min(most, M - begin), padded = (count + 7) / 8 * 8;
    const bool in_place = is_view(&rows[begin], count, padded);
    if (!in_place && !hidden_buffer.defined()) hidden_buffer = at::empty({held, D}, hidden.options());
    const at::Tensor h = chunk_of(hidden, &rows[begin], count, padded, hidden_buffer);  // [padded, D]
    at::Tensor logits = logits_buffer.narrow(0, 0, padded);                             // [padded, V]
    at::mm_out(logits, h, weight.t());

    CrossEntropyRows job;
    job.rows = static_cast<size_t>(count), job.columns = static_cast<size_t>(V);
    job.logits = logits.mutable_data_ptr<float>();
    job.targets = &target[begin];
    job.bias = floats_or_null(bias);
    job.logit_scale = static_cast<float>(options.logit_scale), job.softcap = static_cast<float>(options.softcap);
    job.scale = static_cast<float>(options.scale), job.z_loss = static_cast<float>(options.z_loss);
    job.gradients = gradients;
    job.nll = &nll[begin], job.lse = &lse[begin], job.correct = &correct[begin];
    simd_cross_entropy(job);
    if (!gradients) continue;

    std::fill_n(job.logits + count * V, (padded - count) * V, 0.0f);
    if (in_place) {
      at::Tensor dhidden = out.dhidden.narrow(0, rows[begin], count);
      at::mm_out(dhidden, logits, weight);
    } else {
      if (!dhidden_buffer.defined()) dhidden_buffer = at::empty({held, D}, hidden.options());
      at::Tensor dhidden = dhidden_buffer.narrow(0, 0, padded);
      at::mm_out(dhidden, logits, weight);
      const float* from = dhidden.const_data_ptr<float>();
      float* to = out.dhidden.mutable_data_ptr<float>();
      for (int64_t r = 0; r < count; ++r) std::copy_n(from + r * D, D, to + rows[begin + r] * D);
    }
    if (dweight.defined()) at::Tensor(dweight).addmm_(logits.t(), h);
    if (dbias.defined()) simd_add_rows(job.logits, job.rows, job.columns, dbias.mutable_data_ptr<float>());
  }

  float* row_nll = out.row_nll.mutable_data_ptr<float>();
  for (int64_t r = 0; r < M; ++r) {
    row_nll[rows[r]] = static_cast<float>(nll[r]);
    z[r] = lse[r] * lse[r];
    out.correct += correct[r];
  }
  out.nll = tree_sum(nll.data(), M);
  out.z = tree_sum(z.data(), M);
  return out;
}

}  // namespace cairn::kernels
