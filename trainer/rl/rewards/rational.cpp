#include "trainer/rl/rewards/rational.h"

#include <algorithm>
#include <numeric>

namespace cairn::rl {
namespace {
constexpr uint64_t kBase = 1000000000;
}

Integer::Integer(int64_t value) : negative_(value < 0) {
  uint64_t size = value < 0 ? uint64_t{0} - static_cast<uint64_t>(value) : static_cast<uint64_t>(value);
  for (; size > 0; size /= kBase) limbs_.push_back(static_cast<uint32_t>(size % kBase));
}

Integer Integer::from_digits(std::string_view digits) {
  Integer out;
  for (size_t end = digits.size(); end > 0;) {
    const size_t begin = end > 9 ? end - 9 : 0;
    uint32_t limb = 0;
    for (size_t i = begin; i < end; ++i) limb = limb * 10 + static_cast<uint32_t>(digits[i] - '0');
    out.limbs_.push_back(limb);
    end = begin;
  }
  out.trim();
  return out;
}

Integer Integer::power_of_ten(int exponent) {
  return from_digits("1" + std::string(static_cast<size_t>(exponent), '0'));
}

void Integer::trim() {
  while (!limbs_.empty() && limbs_.back() == 0) limbs_.pop_back();
  if (limbs_.empty()) negative_ = false;
}

std::strong_ordering Integer::compare(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b) {
  if (a.size() != b.size()) return a.size() <=> b.size();
  for (size_t i = a.size(); i > 0; --i)
    if (a[i - 1] != b[i - 1]) return a[i - 1] <=> b[i - 1];
  return std::strong_ordering::equal;
}

Integer Integer::operator-() const {
  Integer out = *this;
  out.negative_ = !negative_ && !zero();
  return out;
}

Integer Integer::operator+(const Integer& other) const {
  const bool same = negative_ == other.negative_;
  const bool larger = compare(limbs_, other.limbs_) >= 0;
  const Integer& a = larger ? *this : other;
  const Integer& b = larger ? other : *this;
  Integer out = a;
  int64_t carry = 0;
  for (size_t i = 0; i < a.limbs_.size(); ++i) {
    const int64_t term = i < b.limbs_.size() ? b.limbs_[i] : 0;
    int64_t limb = int64_t{a.limbs_[i]} + (same ? term : -term) + carry;
    carry = limb < 0 ? -1 : limb >= static_cast<int64_t>(kBase) ? 1 : 0;
    limb -= carry * static_cast<int64_t>(kBase);
    out.limbs_[i] = static_cast<uint32_t>(limb);
  }
  if (carry > 0) out.limbs_.push_back(1);
  out.trim();
  return out;
}

Integer Integer::operator*(const Integer& other) const {
  Integer out;
  if (zero() || other.zero()) return out;
  out.limbs_.assign(limbs_.size() + other.limbs_.size(), 0);
  for (size_t i = 0; i < limbs_.size(); ++i) {
    uint64_t carry = 0;
    for (size_t j = 0; j < other.limbs_.size() || carry > 0; ++j) {
      const uint64_t factor = j < other.limbs_.size() ? other.limbs_[j] : 0;
      const uint64_t limb = out.limbs_[i + j] + limbs_[i] * factor + carry;
      out.limbs_[i + j] = static_cast<uint32_t>(limb % kBase);
      carry = limb / kBase;
    }
  }
  out.negative_ = negative_ != other.negative_;
  out.trim();
  return out;
}

bool Integer::fits(int64_t& value) const {
  if (limbs_.size() > 2) return false;
  value = 0;
  for (size_t i = limbs_.size(); i > 0; --i) value = value * static_cast<int64_t>(kBase) + limbs_[i - 1];
  if (negative_) value = -value;
  return true;
}

std::string Integer::text() const {
  if (zero()) return "0";
  std::string out = std::to_string(limbs_.back());
  for (size_t i = limbs_.size() - 1; i > 0; --i) {
    const std::string limb = std::to_string(limbs_[i - 1]);
    out += std::string(9 - limb.size(), '0') + limb;
  }
  return negative_ ? "-" + out : out;
}

Rational Rational::operator+(const Rational& other) const {
  return {numerator * other.denominator + other.numerator * denominator, denominator * other.denominator};
}
Rational Rational::operator*(const Rational& other) const {
  return {numerator * other.numerator, denominator * other.denominator};
}
Rational Rational::operator/(const Rational& other) const {
  const Integer below = denominator * other.numerator, above = numerator * other.denominator;
  return below.negative() ? Rational{-above, -below} : Rational{above, below};
}
bool Rational::operator==(const Rational& other) const {
  return numerator * other.denominator == other.numerator * denominator;
}

std::string Rational::text() const {
  int64_t above, below;
  if (numerator.fits(above) && denominator.fits(below)) {
    const int64_t common = std::gcd(above, below);
    above /= common;
    below /= common;
    return below == 1 ? std::to_string(above) : std::to_string(above) + "/" + std::to_string(below);
  }
  return denominator == Integer(1) ? numerator.text() : numerator.text() + "/" + denominator.text();
}

}  // namespace cairn::rl
