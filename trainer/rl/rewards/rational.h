// Exact numbers of any size: answers are compared and expressions evaluated without rounding or overflow.
#pragma once

#include <compare>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cairn::rl {

class Integer {
 public:
  Integer(int64_t value = 0);
  // Decimal digits alone, no sign; "" is 0.
  static Integer from_digits(std::string_view digits);
  static Integer power_of_ten(int exponent);

  Integer operator-() const;
  Integer operator+(const Integer& other) const;
  Integer operator-(const Integer& other) const { return *this + -other; }
  Integer operator*(const Integer& other) const;
  bool operator==(const Integer& other) const = default;

  bool zero() const { return limbs_.empty(); }
  bool negative() const { return negative_; }
  bool fits(int64_t& value) const;  // and the value, where it has at most 18 digits
  std::string text() const;

 private:
  static std::strong_ordering compare(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b);
  void trim();
  std::vector<uint32_t> limbs_;  // base 10^9, the least first, none of them a leading zero
  bool negative_ = false;
};

// A fraction that is not kept in lowest terms; the denominator is positive.
struct Rational {
  Integer numerator = 0, denominator = 1;

  Rational operator-() const { return {-numerator, denominator}; }
  Rational operator+(const Rational& other) const;
  Rational operator-(const Rational& other) const { return *this + -other; }
  Rational operator*(const Rational& other) const;
  Rational operator/(const Rational& other) const;  // REQUIRES: other is not zero
  bool operator==(const Rational& other) const;     // by value
  bool zero() const { return numerator.zero(); }
  // "5", "-7/3": one text a value, as long as both parts have at most 18 digits.
  std::string text() const;
};

}  // namespace cairn::rl
