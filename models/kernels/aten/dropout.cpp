#include "models/kernels/aten/dropout.h"

#include <array>

#include "models/random.h"

namespace cairn::kernels::aten {
namespace {

constexpr int64_t kWord = 0xFFFFFFFF;

at::Tensor low(const at::Tensor& x) { return x.bitwise_and(kWord); }
at::Tensor high(const at::Tensor& x) { return low(at::bitwise_right_shift(x, 32)); }

// philox4x32 of models/random.h for a tensor of block numbers (int64, read as unsigned): four words, each int64 in
// [0, 2^32) of the shape of `blocks`. Products wrap modulo 2^64 as unsigned ones do.
std::array<at::Tensor, 4> philox(const at::Tensor& blocks, const Philox& random) {
  const uint64_t key = random.seed ^ (uint64_t{static_cast<uint32_t>(random.purpose)} * 0x9E3779B97F4A7C15ull);
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  const auto word = [&](uint64_t value) { return at::full_like(blocks, static_cast<int64_t>(value & kWord)); };
  at::Tensor c0 = low(blocks), c1 = high(blocks), c2 = word(random.stream), c3 = word(random.stream >> 32);
  for (int round = 0; round < 10; ++round) {
    const at::Tensor p0 = c0.mul(int64_t{0xD2511F53}), p1 = c2.mul(int64_t{0xCD9E8D57});
    c0 = high(p1).bitwise_xor_(c1).bitwise_xor_(int64_t{k0});
    c2 = high(p0).bitwise_xor_(c3).bitwise_xor_(int64_t{k1});
    c1 = low(p1), c3 = low(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {c0, c1, c2, c3};
}

// Sixteen neighbouring blocks give 64 columns: block [..., 1] + group * 16 + lane, columns ordered (group, word, lane).
at::Tensor factors(const at::Tensor& first_blocks, int64_t columns, double p, uint32_t threshold,
                   const DropoutKey& key) {
  const int64_t groups = (columns + 63) / 64;
  const at::Tensor offsets = at::arange(groups * 16, first_blocks.options());
  std::vector<int64_t> shape = first_blocks.sizes().vec();
  at::Tensor blocks = first_blocks.unsqueeze(-1).add(offsets);  // [..., groups * 16]
  shape.push_back(groups), shape.push_back(16);
  const auto words = philox(blocks.view(shape), {key.seed, Purpose::dropout, key.stream});
  at::Tensor kept = at::stack({words[0].ge(int64_t{threshold}), words[1].ge(int64_t{threshold}),
                               words[2].ge(int64_t{threshold}), words[3].ge(int64_t{threshold})},
                              -2);  // [..., groups, 4, 16]
  shape.pop_back(), shape.back() = groups * 64;
  return kept.view(shape).narrow(-1, 0, columns).to(at::kFloat).mul_(static_cast<float>(1 / (1 - p)));
}

}  // namespace

at::Tensor dropout_mask(int64_t rows, int64_t columns, double p, const DropoutKey& key, at::Device device) {
  const auto options = at::TensorOptions(at::kLong).device(device);
  const at::Tensor row = at::arange(key.first_row, key.first_row + rows, options);
  return factors(row.mul(int64_t{1} << 32), columns, p, dropout_threshold(p), key);
}

at::Tensor attention_dropout_mask(int64_t batch, int64_t heads, int64_t length, double p, const DropoutKey& key,
                                  at::Device device) {
  const auto options = at::TensorOptions(at::kLong).device(device);
  const at::Tensor row = at::arange(key.first_row, key.first_row + batch * length, options);
  const at::Tensor line = row.mul(heads).view({batch, 1, length}).add(at::arange(heads, options).view({1, heads, 1}));
  return factors(line.mul(int64_t{1} << 20), length, p, static_cast<uint32_t>(p * 0x1.0p32), key);
}

}  // namespace cairn::kernels::aten
