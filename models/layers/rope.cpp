#include "models/layers/rope.h"

#include <numbers>

namespace cairn::models {
namespace {

using std::numbers::pi;

// Frequencies are float32 ATen operations in the order in which transformers does them: a difference in the last bit of
// a frequency grows with the position.
at::Tensor exponents(const RopeConfig& c) {
  return at::arange(0, c.rotary_dim, 2, at::kLong).to(at::kFloat) / static_cast<double>(c.rotary_dim);
}
at::Tensor waves(const RopeConfig& c) { return at::pow(c.rope_theta, exponents(c)); }

RopeFrequencies default_rope(const RopeConfig& c) { return {waves(c).reciprocal()}; }

// Chen et al. 2023, position interpolation.
RopeFrequencies linear_rope(const RopeConfig& c) { return {waves(c).reciprocal() / c.factor}; }

// Llama 3.1: long waves are interpolated, short ones kept, those between blended.
RopeFrequencies llama3_rope(const RopeConfig& c) {
  const at::Tensor kept = waves(c).reciprocal();
  const double old = static_cast<double>(c.original_max_position_embeddings);
  const at::Tensor wavelength = 2 * pi / kept;
  const at::Tensor is_long = wavelength > old / c.low_freq_factor, is_short = wavelength < old / c.high_freq_factor;
  const at::Tensor out = at::where(is_long, kept / c.factor, kept);
  const at::Tensor smooth = (old / wavelength - c.low_freq_factor) / (c.high_freq_factor - c.low_freq_factor);
  const at::Tensor blended = (1 - smooth) * out / c.factor + smooth * out;
  return {at::where(is_long.logical_or(is_short), out, blended)};
}

// YaRN (Peng et al. 2023), "NTK by parts".
RopeFrequencies yarn_rope(const RopeConfig& c) {
  const double old = static_cast<double>(c.original_max_position_embeddings);
  auto dimension = [&](double rotations) {
    return static_cast<double>(c.rotary_dim) * std::log(old / (rotations * 2 * pi)) / (2 * std::log(c.rope_theta));
  };
  double low = dimension(c.beta_fast), high = dimension(c.beta_slow);
  if (c.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0), high = std::min(high, static_cast<double>(c.rotary_dim - 1));
  if (low == high) high += 0.001;
  const at::Tensor ramp = at::clamp((at::arange(c.rotary_dim / 2, at::kFloat) - low) / (high - low), 0, 1);
  const at::Tensor waves = models::waves(c), kept = 1 - ramp;
  RopeFrequencies f{(waves * c.factor).reciprocal() * (1 - kept) + waves.reciprocal() * kept};
  auto mscale = [&](double m) { return c.factor <= 1 ? 1.0 : 0.1 * m * std::log(c.factor) + 1; };
  if (c.attention_factor) {
    f.attention_factor = c.attention_factor;
  } else if (c.mscale && c.mscale_all_dim) {
    f.attention_factor = mscale(c.mscale) / mscale(c.mscale_all_dim);
  } else {
    f.attention_factor = mscale(1);
  }
  return f;
}

struct Scaling {
  const char* name;
  RopeFrequencies (*make)(const RopeConfig&);
};
// `dynamic` changes the base only beyond the trained length; inside it equals the default, and a longer context is
// refused.
constexpr Scaling kScalings[] = {
    {"default", default_rope}, {"linear", linear_rope}, {"dynamic", default_rope},
    {"llama3", llama3_rope},   {"yarn", yarn_rope},
};

}  // namespace

RopeFrequencies rope_frequencies(const RopeConfig& config) {
  at::NoGradGuard no_grad;
  std::string known;
  for (const Scaling& scaling : kScalings) {
    if (config.rope_type == scaling.name) return scaling.make(config);
    known += known.empty() ? scaling.name : std::string(", ") + scaling.name;
  }
  throw std::invalid_argument(fmt::format("rope_type: '{}' is not supported; there are {}", config.rope_type, known));
}

std::pair<at::Tensor, at::Tensor> RopeTable::get(int64_t length, at::Device device) {
  if (config_.rope_type == "dynamic" && config_.max_position_embeddings && length > config_.max_position_embeddings) {
    throw std::invalid_argument(
        fmt::format("rope_type dynamic: a context of {} tokens is longer than max_position_embeddings ({}); longer "
                    "ones are not supported",
                    length, config_.max_position_embeddings));
  }
  if (!cos_.defined() || cos_.size(0) < length || cos_.device() != device) {
    at::NoGradGuard no_grad;
    int64_t rows = 256;
    while (rows < length) rows *= 2;
    const RopeFrequencies f = rope_frequencies(config_);
    // The angle is a float32 product, as transformers computes it.
    const at::Tensor angles = at::arange(rows, at::kFloat).unsqueeze(1) * f.inverse;  // [rows, R/2]
    // NOTE: first on one thread. Where this was the first vector function of a process on two threads, 5 of 87 replays
    // of a first step came out in other bits, always the same ones; with this line, none of 70. Why is not proven.
    at::cos(angles.narrow(0, 0, 1)), at::sin(angles.narrow(0, 0, 1));
    cos_ = (at::cos(angles) * f.attention_factor).to(device);
    sin_ = (at::sin(angles) * f.attention_factor).to(device);
  }
  return {cos_, sin_};
}

}  // namespace cairn::models
