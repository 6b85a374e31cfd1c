#include "trainer/device_digest.h"

#include "checkpoints/kernels/digest_simd.h"
#include "models/kernels/aten/upload.h"
#include "models/random.h"

namespace cairn {
namespace {

using checkpoints::kDigestBlock;

constexpr int64_t kRows = 8192;  // blocks at a time: 64 MiB as int64, and three temporaries of that size

at::Tensor as_tensor(const std::vector<uint64_t>& values, at::Device device) {
  const at::Tensor host = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), reinterpret_cast<uint64_t*>(host.data_ptr<int64_t>()));
  return kernels::aten::upload(host, device);
}

// Blocks of the definition, one a row, filled up part by part. int64 stands for unsigned 64-bit numbers: sums and
// products wrap alike.
class Rows {
 public:
  explicit Rows(at::Device device) : device_(device) {
    std::vector<uint64_t> r, m[2];
    for (uint64_t j = 0; j < kDigestBlock; ++j) {
      r.push_back(checkpoints::mix64(kDigestBlock + j) & 0xFFFFFFFF);
      for (const int lane : {0, 1}) m[lane].push_back((checkpoints::mix64(j) >> 32 * lane & 0xFFFFFFFF) | 1);
    }
    r_ = as_tensor(r, device), m_ = {as_tensor(m[0], device), as_tensor(m[1], device)};
    column_ = at::arange(kDigestBlock, r_.options());
    bits_ = at::empty({kRows, kDigestBlock}, r_.options());
    sums_ = at::zeros({2}, r_.options());
  }

  void add(const DigestPart& part) {
    const at::Tensor flat = part.tensor.reshape({-1});
    const uint64_t name = hash_name(part.name.data(), part.name.size());
    for (int64_t done = 0; done < flat.numel();) {
      if (rows() == kRows) flush();
      const int64_t index = part.first_index + done, column = index % kDigestBlock;
      const int64_t count = std::min(flat.numel() - done, (kRows - rows()) * kDigestBlock - column);
      const int64_t used = (column + count + kDigestBlock - 1) / kDigestBlock;
      const at::Tensor to = bits_.view({-1}).narrow(0, rows() * kDigestBlock + column, count);
      const at::Tensor from = flat.narrow(0, done, count);
      if (from.scalar_type() == at::kFloat) {
        to.copy_(from.view(at::kInt)).bitwise_and_(int64_t{0xFFFFFFFF});
      } else {
        to.copy_(from.view(at::kShort)).bitwise_and_(int64_t{0xFFFF});
      }
      for (int64_t row = 0; row < used; ++row) {
        for (const int lane : {0, 1})
          key_[lane].push_back(checkpoints::digest_key(name, lane, static_cast<uint64_t>(index / kDigestBlock + row)));
        low_.push_back(row == 0 ? column : 0);
        high_.push_back(std::min<int64_t>(kDigestBlock, column + count - row * kDigestBlock));
      }
      done += count;
    }
  }

  checkpoints::Digest result() {
    flush();
    const at::Tensor host = sums_.cpu();
    const int64_t* sums = host.const_data_ptr<int64_t>();
    return {static_cast<uint64_t>(sums[0]), static_cast<uint64_t>(sums[1])};
  }

 private:
  int64_t rows() const { return static_cast<int64_t>(low_.size()); }

  void flush() {
    if (low_.empty()) return;
    const at::Tensor u = bits_.narrow(0, 0, rows()).bitwise_xor_(r_);  // bits >> 32 is 0 for both types
    const at::Tensor outside = column_.lt(as_tensor(low_, device_).unsqueeze(1))
                                   .logical_or_(column_.ge(as_tensor(high_, device_).unsqueeze(1)));  // [rows, 1024]
    for (const int lane : {0, 1}) {
      const at::Tensor p = u.mul(m_[lane]);
      // p ^ (p >> 32) with the zeros of an unsigned shift.
      p.bitwise_xor_(at::bitwise_right_shift(p, 32).bitwise_and_(int64_t{0xFFFFFFFF})).masked_fill_(outside, 0);
      sums_.narrow(0, lane, 1).add_(p.sum(1).mul_(as_tensor(key_[lane], device_)).sum());
      key_[lane].clear();
    }
    low_.clear(), high_.clear();
  }

  at::Device device_;
  at::Tensor r_, column_, bits_, sums_;
  std::array<at::Tensor, 2> m_;
  std::array<std::vector<uint64_t>, 2> key_;
  std::vector<uint64_t> low_, high_;  // columns of each row that hold elements: [low, high)
};

}  // namespace

checkpoints::Digest digest_on_device(const std::vector<DigestPart>& parts) {
  const at::NoGradGuard no_grad;
  if (parts.empty()) return {};
  Rows rows(parts.front().tensor.device());
  for (const DigestPart& part : parts) {
    const auto type = part.tensor.scalar_type();
    if ((type != at::kFloat && type != at::kBFloat16) || !part.tensor.is_contiguous())
      throw std::invalid_argument(fmt::format("digest of '{}': found {}{}, expected contiguous float32 or bfloat16",
                                              part.name, part.tensor.is_contiguous() ? "" : "strided ",
                                              c10::toString(type)));
    rows.add(part);
  }
  return rows.result();
}

}  // namespace cairn
