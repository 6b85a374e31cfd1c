#include "models/layers/rope.h"

#include <numbers>

namespace cairn::models {
namespace {

using std::numbers::pi;

RopeFrequencies plain(const RopeConfig& c, double theta) {
  RopeFrequencies f;
  for (int64_t i = 0; i < c.rotary_dim; i += 2) f.inverse.push_back(1 / std::pow(theta, static_cast<double>(i) / c.rotary_dim));
  return f;
}

RopeFrequencies default_rope(const RopeConfig& c) { return plain(c, c.rope_theta); }

// Chen et al. 2023, position interpolation.
RopeFrequencies linear_rope(const RopeConfig& c) {
  RopeFrequencies f = plain(c, c.rope_theta);
  for (double& w : f.inverse) w /= c.factor;
  return f;
}

// Llama 3.1: long waves are interpolated, short ones kept, those between blended.
RopeFrequencies llama3_rope(const RopeConfig& c) {
  RopeFrequencies f = plain(c, c.rope_theta);
  const double old = c.original_max_position_embeddings;
  for (double& w : f.inverse) {
    const double wavelength = 2 * pi / w;
    if (wavelength > old / c.low_freq_factor) {
      w /= c.factor;
    } else if (wavelength >= old / c.high_freq_factor) {
      const double smooth = (old / wavelength - c.low_freq_factor) / (c.high_freq_factor - c.low_freq_factor);
      w = (1 - smooth) * w / c.factor + smooth * w;
    }
  }
  return f;
}

// YaRN (Peng et al. 2023), "NTK by parts".
RopeFrequencies yarn_rope(const RopeConfig& c) {
  RopeFrequencies f = plain(c, c.rope_theta);
  const double old = c.original_max_position_embeddings ? c.original_max_position_embeddings : c.max_position_embeddings;
  const double factor = c.factor;
  auto dimension = [&](double rotations) { return c.rotary_dim * std::log(old / (rotations * 2 * pi)) / (2 * std::log(c.rope_theta)); };
  double low = dimension(c.beta_fast), high = dimension(c.beta_slow);
  if (c.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0), high = std::min(high, static_cast<double>(c.rotary_dim - 1));
  if (low == high) high += 0.001;
  for (size_t i = 0; i < f.inverse.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    f.inverse[i] = f.inverse[i] / factor * ramp + f.inverse[i] * (1 - ramp);
  }
  auto mscale = [&](double scale, double m) { return scale <= 1 ? 1.0 : 0.1 * m * std::log(scale) + 1; };
  if (c.attention_factor) {
    f.attention_factor = c.attention_factor;
  } else if (c.mscale && c.mscale_all_dim) {
    f.attention_factor = mscale(factor, c.mscale) / mscale(factor, c.mscale_all_dim);
  } else {
    f.attention_factor = mscale(factor, 1);
  }
  return f;
}

struct Scaling {
  const char* name;
  RopeFrequencies (*make)(const RopeConfig&);
};
// `dynamic` changes the base only beyond the trained length; inside it equals the default, and a longer context is refused.
constexpr Scaling kScalings[] = {
    {"default", default_rope}, {"linear", linear_rope}, {"dynamic", default_rope}, {"llama3", llama3_rope}, {"yarn", yarn_rope},
};

}  // namespace

RopeFrequencies rope_frequencies(const RopeConfig& config) {
  std::string known;
  for (const Scaling& scaling : kScalings) {
    if (config.rope_type == scaling.name) return scaling.make(config);
    known += known.empty() ? scaling.name : std::string(", ") + scaling.name;
  }
  throw std::invalid_argument(fmt::format("rope_type: '{}' is not supported; there are {}", config.rope_type, known));
}

std::pair<at::Tensor, at::Tensor> RopeTable::get(int64_t length, at::Device device) {
  if (!cos_.defined() || cos_.size(0) < length || cos_.device() != device) {
    at::NoGradGuard no_grad;
    int64_t rows = 256;
    while (rows < length) rows *= 2;
    const RopeFrequencies f = rope_frequencies(config_);
    const int64_t half = f.inverse.size();
    at::Tensor cos = at::empty({rows, half}, at::kFloat), sin = at::empty({rows, half}, at::kFloat);
    float *c = cos.data_ptr<float>(), *s = sin.data_ptr<float>();
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t i = 0; i < half; ++i) {
        // The angle is a float32 product, as transformers computes it.
        const float angle = static_cast<float>(t) * static_cast<float>(f.inverse[i]);
        c[t * half + i] = static_cast<float>(std::cos(static_cast<double>(angle)) * f.attention_factor);
        s[t * half + i] = static_cast<float>(std::sin(static_cast<double>(angle)) * f.attention_factor);
      }
    }
    cos_ = cos.to(device), sin_ = sin.to(device);
  }
  return {cos_, sin_};
}

}  // namespace cairn::models
