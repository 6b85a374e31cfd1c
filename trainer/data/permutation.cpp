#include "trainer/data/permutation.h"

#include <fmt/format.h>

#include <cmath>
#include <stdexcept>
#include <string>

#include "models/random.h"

namespace cairn::data {
namespace {
constexpr int kRounds = 12;  // even: left and right are changed equally often; recorded runs depend on it

uint64_t ceil_sqrt(uint64_t n) {
  auto root = static_cast<uint64_t>(std::sqrt(static_cast<double>(n)));
  while (root * root > n) --root;
  while (root * root < n) ++root;
  return root;
}

// Floor of word * range / 2^64: uniform in [0, range).
uint64_t scaled(uint64_t word, uint64_t range) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<uint64_t>(static_cast<Wide>(word) * range >> 64);
}
}  // namespace

Permutation::Permutation(uint64_t seed, std::string_view name, int64_t epoch, int64_t n) : seed_(seed), n_(n) {
  if (n < 1 || n >= int64_t{1} << 62) throw std::invalid_argument(fmt::format("a permutation of {} elements", n));
  std::string key(name);
  key += '\0';
  for (int byte = 0; byte < 8; ++byte) key += static_cast<char>(static_cast<uint64_t>(epoch) >> (8 * byte));
  stream_ = hash_name(key.data(), key.size());
  a_ = ceil_sqrt(static_cast<uint64_t>(n));
  b_ = (static_cast<uint64_t>(n) + a_ - 1) / a_;
}

uint64_t Permutation::round_word(int round, uint64_t half) const {
  return Philox{seed_, Purpose::data, stream_}.bits64(static_cast<uint64_t>(round) << 40 | half);
}

uint64_t Permutation::forward(uint64_t x) const {
  uint64_t left = x / b_, right = x % b_;
  for (int round = 0; round < kRounds; round += 2) {
    left = (left + scaled(round_word(round, right), a_)) % a_;
    right = (right + scaled(round_word(round + 1, left), b_)) % b_;
  }
  return left * b_ + right;
}

uint64_t Permutation::backward(uint64_t x) const {
  uint64_t left = x / b_, right = x % b_;
  for (int round = kRounds - 2; round >= 0; round -= 2) {
    right = (right + b_ - scaled(round_word(round + 1, left), b_)) % b_;
    left = (left + a_ - scaled(round_word(round, right), a_)) % a_;
  }
  return left * b_ + right;
}

// Outside the domain a walk need not end.
void Permutation::check(int64_t x) const {
  if (x < 0 || x >= n_) throw std::out_of_range(fmt::format("{} in a permutation of {} elements", x, n_));
}

int64_t Permutation::operator()(int64_t position) const {
  check(position);
  auto x = static_cast<uint64_t>(position);
  do x = forward(x);
  while (x >= static_cast<uint64_t>(n_));
  return static_cast<int64_t>(x);
}

int64_t Permutation::inverse(int64_t value) const {
  check(value);
  auto x = static_cast<uint64_t>(value);
  do x = backward(x);
  while (x >= static_cast<uint64_t>(n_));
  return static_cast<int64_t>(x);
}

}  // namespace cairn::data
