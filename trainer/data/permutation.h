// A random permutation of 0 .. n-1 with random access in both directions: nothing is stored, any element costs O(1).
#pragma once

#include <cstdint>
#include <string_view>

namespace cairn::data {

// An alternating Feistel network over pairs (left, right) in [0, a) x [0, b), a b >= n, with modular addition of Philox
// words as round function (Luby, Rackoff 1988; unbalanced over mixed radices: Black, Rogaway 2002, "Ciphers with
// arbitrary finite domains"). Values >= n are walked along their cycle; a = ceil(sqrt(n)), so fewer than 2 sqrt(n) of
// them exist.
class Permutation {
 public:
  // n >= 1, below 2^62. Another (seed, name, epoch) is another permutation.
  Permutation(uint64_t seed, std::string_view name, int64_t epoch, int64_t n);

  int64_t size() const { return n_; }
  int64_t operator()(int64_t position) const;  // 0 <= position < n
  int64_t inverse(int64_t value) const;        // operator()(inverse(v)) == v

 private:
  void check(int64_t x) const;
  uint64_t round_word(int round, uint64_t half) const;
  uint64_t forward(uint64_t x) const;
  uint64_t backward(uint64_t x) const;

  uint64_t seed_, stream_;
  int64_t n_;
  uint64_t a_, b_;
};

}  // namespace cairn::data
