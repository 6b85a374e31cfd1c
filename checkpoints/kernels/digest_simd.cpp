#include "checkpoints/kernels/digest_simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "checkpoints/kernels/digest_simd.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

HWY_BEFORE_NAMESPACE();
namespace cairn::checkpoints::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Terms of one block without its K; scalar, for the ends that fill no vector.
template <class T>
HWY_INLINE void AddScalar(const uint8_t* data, int64_t j, int64_t end, uint64_t* sums) {
  for (; j < end; ++j, data += sizeof(T)) {
    T element;
    std::memcpy(&element, data, sizeof(T));
    const uint64_t bits = element;
    const uint64_t u = bits ^ bits >> 32 ^ kDigestTables.r[j];
    for (int lane = 0; lane < 2; ++lane) {
      const uint64_t p = u * kDigestTables.m[lane][j];
      sums[lane] += p ^ p >> 32;
    }
  }
}

#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128

template <class T>
void AddVectors(const uint8_t* data, int64_t j, int64_t end, uint64_t* sums) {
  AddScalar<T>(data, j, end, sums);
}

#else

template <class D64, class V64>
HWY_INLINE V64 Fold(D64, V64 p) {
  return hn::Xor(p, hn::ShiftRight<32>(p));
}

// The processor's own prefetcher stops at page ends; with this the loop runs at the speed of a plain read of memory.
constexpr int64_t kAhead = 4096;

// Elements of up to 32 bits: u and m fit 32 bits, so one widening multiplication gives p. Even and odd elements are
// multiplied apart; the multiplication ignores the upper halves.
template <class T>
HWY_INLINE void AddVectors(const uint8_t* data, int64_t j, int64_t end, uint64_t* sums) {
  const hn::ScalableTag<uint32_t> d;
  const hn::Repartition<uint64_t, decltype(d)> d64;
  const hn::Rebind<T, decltype(d)> narrow;
  const int64_t lanes = hn::Lanes(d);
  auto even0 = hn::Zero(d64), even1 = hn::Zero(d64), odd0 = hn::Zero(d64), odd1 = hn::Zero(d64);
  for (; j < end; j += lanes, data += lanes * sizeof(T)) {
    hwy::Prefetch(data + kAhead);
    auto u = hn::Undefined(d);
    if constexpr (sizeof(T) == 4) {
      u = hn::LoadU(d, reinterpret_cast<const T*>(data));
    } else {
      u = hn::PromoteTo(d, hn::LoadU(narrow, reinterpret_cast<const T*>(data)));
    }
    u = hn::Xor(u, hn::Load(d, kDigestTables.r.data() + j));
    const auto odd = hn::BitCast(d, hn::ShiftRight<32>(hn::BitCast(d64, u)));
    even0 = hn::Add(even0, Fold(d64, hn::MulEven(u, hn::Load(d, kDigestTables.m[0].data() + j))));
    even1 = hn::Add(even1, Fold(d64, hn::MulEven(u, hn::Load(d, kDigestTables.m[1].data() + j))));
    odd0 = hn::Add(odd0, Fold(d64, hn::MulEven(odd, hn::Load(d, kDigestTables.next[0].data() + j))));
    odd1 = hn::Add(odd1, Fold(d64, hn::MulEven(odd, hn::Load(d, kDigestTables.next[1].data() + j))));
  }
  sums[0] += hn::GetLane(hn::SumOfLanes(d64, hn::Add(even0, odd0)));
  sums[1] += hn::GetLane(hn::SumOfLanes(d64, hn::Add(even1, odd1)));
}

// 64-bit elements: p = low(u) * m + (high(u) * m << 32), m being below 2^32.
template <>
HWY_INLINE void AddVectors<uint64_t>(const uint8_t* data, int64_t j, int64_t end, uint64_t* sums) {
  const hn::ScalableTag<uint64_t> d;
  const hn::Repartition<uint32_t, decltype(d)> d32;
  const hn::Rebind<uint32_t, decltype(d)> half;
  const int64_t lanes = hn::Lanes(d);
  auto sum0 = hn::Zero(d), sum1 = hn::Zero(d);
  for (; j < end; j += lanes, data += lanes * 8) {
    const auto bits = hn::LoadU(d, reinterpret_cast<const uint64_t*>(data));
    const auto u =
        hn::Xor(hn::Xor(bits, hn::ShiftRight<32>(bits)), hn::PromoteTo(d, hn::LoadU(half, kDigestTables.r.data() + j)));
    const auto low = hn::BitCast(d32, u), high = hn::BitCast(d32, hn::ShiftRight<32>(u));
    const auto m0 = hn::BitCast(d32, hn::PromoteTo(d, hn::LoadU(half, kDigestTables.m[0].data() + j)));
    const auto m1 = hn::BitCast(d32, hn::PromoteTo(d, hn::LoadU(half, kDigestTables.m[1].data() + j)));
    sum0 = hn::Add(sum0, Fold(d, hn::Add(hn::MulEven(low, m0), hn::ShiftLeft<32>(hn::MulEven(high, m0)))));
    sum1 = hn::Add(sum1, Fold(d, hn::Add(hn::MulEven(low, m1), hn::ShiftLeft<32>(hn::MulEven(high, m1)))));
  }
  sums[0] += hn::GetLane(hn::SumOfLanes(d, sum0));
  sums[1] += hn::GetLane(hn::SumOfLanes(d, sum1));
}

#endif

template <class T>
void AddElements(const uint8_t* data, int64_t first, int64_t count, uint64_t name_hash, uint64_t* sums) {
  const int64_t lanes = std::min<int64_t>(hn::Lanes(hn::ScalableTag<uint32_t>()), kDigestBlock);
  const uint64_t key0 = mix64(name_hash), key1 = mix64(name_hash + 1);
  while (count > 0) {
    const uint64_t block = static_cast<uint64_t>(first) / kDigestBlock;
    const int64_t begin = first % kDigestBlock, n = std::min(count, kDigestBlock - begin), end = begin + n;
    const int64_t head = std::min(end, (begin + lanes - 1) / lanes * lanes);
    const int64_t tail = std::max(head, end / lanes * lanes);
    uint64_t terms[2] = {0, 0};
    AddScalar<T>(data, begin, head, terms);
    AddVectors<T>(data + (head - begin) * sizeof(T), head, tail, terms);
    AddScalar<T>(data + (tail - begin) * sizeof(T), tail, end, terms);
    sums[0] += terms[0] * (mix64(key0 + block) | 1);
    sums[1] += terms[1] * (mix64(key1 + block) | 1);
    data += n * sizeof(T);
    first += n;
    count -= n;
  }
}

void DigestElements(const void* data, size_t size, int64_t first, int64_t count, uint64_t name_hash, uint64_t* sums) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  switch (size) {
    case 1:
      return AddElements<uint8_t>(bytes, first, count, name_hash, sums);
    case 2:
      return AddElements<uint16_t>(bytes, first, count, name_hash, sums);
    case 4:
      return AddElements<uint32_t>(bytes, first, count, name_hash, sums);
    default:
      return AddElements<uint64_t>(bytes, first, count, name_hash, sums);
  }
}

const char* TargetName() { return hwy::TargetName(HWY_TARGET); }

}  // namespace cairn::checkpoints::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::checkpoints {
namespace {

constexpr DigestTables make_tables() {
  DigestTables t{};
  for (uint64_t j = 0; j < kDigestBlock; ++j) {
    t.r[j] = static_cast<uint32_t>(mix64(kDigestBlock + j));
    const uint64_t multipliers = mix64(j);
    t.m[0][j] = static_cast<uint32_t>(multipliers) | 1;
    t.m[1][j] = static_cast<uint32_t>(multipliers >> 32) | 1;
  }
  for (int lane = 0; lane < 2; ++lane)
    for (int64_t j = 0; j < kDigestBlock; ++j) t.next[lane][j] = t.m[lane][(j + 1) % kDigestBlock];
  return t;
}

}  // namespace

constexpr DigestTables kDigestTables = make_tables();

HWY_EXPORT(DigestElements);
HWY_EXPORT(TargetName);

void digest_elements(const void* data, size_t element_size, int64_t first, int64_t count, uint64_t name_hash,
                     uint64_t* sums) {
  HWY_DYNAMIC_DISPATCH(DigestElements)(data, element_size, first, count, name_hash, sums);
}

const char* digest_target() { return HWY_DYNAMIC_DISPATCH(TargetName)(); }

}  // namespace cairn::checkpoints
#endif
