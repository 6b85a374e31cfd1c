// Sixteen neighbouring blocks of Philox4x32-10 at once (models/random.h): word w of block first + lane in lane `lane`
// of words[w].

// Included once for every target.
#if defined(CAIRN_MODELS_KERNELS_CPU_PHILOX16_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CAIRN_MODELS_KERNELS_CPU_PHILOX16_H
#undef CAIRN_MODELS_KERNELS_CPU_PHILOX16_H
#else
#define CAIRN_MODELS_KERNELS_CPU_PHILOX16_H
#endif

#include "models/kernels/cpu/lanes16.h"
#include "models/random.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

using WordTag = hn::RebindToUnsigned<Tag>;
using Words = hn::Vec<WordTag>;

struct W16 {  // sixteen 32-bit words
  Words v[kParts];
};

// high and low halves of the 64-bit products of the lanes of a with `factor`
HWY_INLINE void MulWide(Words a, uint32_t factor, Words& high, Words& low) {
  const WordTag d;
  const hn::RepartitionToWide<WordTag> wide;
  const auto k = hn::Set(d, factor);
  const auto upper = hn::Set(wide, 0xFFFFFFFF00000000ull);
  const auto even = hn::MulEven(a, k);
  const auto odd = hn::MulEven(hn::BitCast(d, hn::ShiftRight<32>(hn::BitCast(wide, a))), k);
  high = hn::BitCast(d, hn::Or(hn::ShiftRight<32>(even), hn::And(odd, upper)));
  low = hn::BitCast(d, hn::Or(hn::AndNot(upper, even), hn::ShiftLeft<32>(odd)));
}

// The key that Philox::block derives.
HWY_INLINE uint64_t PhiloxKey(uint64_t seed, Purpose purpose) {
  return seed ^ (uint64_t{static_cast<uint32_t>(purpose)} * 0x9E3779B97F4A7C15ull);
}

// `first` is the index of the block of lane 0; its low 32 bits must not overflow within the sixteen.
HWY_INLINE void Philox16(uint64_t key, uint64_t stream, uint64_t first, W16 (&words)[4]) {
  const WordTag d;
  CAIRN_PARTS {
    auto c0 = hn::Iota(d, static_cast<uint32_t>(first) + static_cast<uint32_t>(p * kWidth));
    auto c1 = hn::Set(d, static_cast<uint32_t>(first >> 32));
    auto c2 = hn::Set(d, static_cast<uint32_t>(stream)), c3 = hn::Set(d, static_cast<uint32_t>(stream >> 32));
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
      Words high0, low0, high1, low1;
      MulWide(c0, 0xD2511F53u, high0, low0);
      MulWide(c2, 0xCD9E8D57u, high1, low1);
      c0 = hn::Xor(hn::Xor(high1, c1), hn::Set(d, k0));
      c2 = hn::Xor(hn::Xor(high0, c3), hn::Set(d, k1));
      c1 = low1, c3 = low0;
      k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    words[0].v[p] = c0, words[1].v[p] = c1, words[2].v[p] = c2, words[3].v[p] = c3;
  }
}

// `kept` where the word is at least `threshold`, else 0.
HWY_INLINE F16 KeepFactor(W16 word, uint32_t threshold, float kept) {
  const WordTag d;
  F16 factor;
  CAIRN_PARTS {
    const auto keep = hn::Eq(hn::Max(word.v[p], hn::Set(d, threshold)), word.v[p]);
    factor.v[p] = hn::IfThenElseZero(hn::RebindMask(Tag(), keep), hn::Set(Tag(), kept));
  }
  return factor;
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, per target
