// The residual stream after each block, over the tokens looked at, from state n-1. s[c] is the root mean square of
// channel c over the tokens:
//   activation_rms       sqrt(mean over c of s²): the root mean square of all of it
//   activation_kurtosis  mean(s⁴) / mean(s²)²: 1 where all channels are equally large, the width of the stream where
//                        one has everything (outlier features)
// "embed" is what enters the first block.
#include "trainer/probes/probe.h"

namespace cairn {
namespace {

// Sums of squares of every channel.
class Channels : public models::Capture {
 public:
  void stream(int64_t block, const at::Tensor& x) override {
    const at::Tensor squares = x.to(at::kDouble).square().sum(0);  // [C]
    const size_t i = block + 1;
    if (sums_.size() <= i) sums_.resize(i + 1);
    sums_[i] = sums_[i].defined() ? sums_[i] + squares : squares;
    if (block < 0) rows_ += x.size(0);
  }
  // s² [C] of what enters the blocks and of each block's result; starts anew.
  std::vector<at::Tensor> take() {
    for (auto& sum : sums_) sum = sum / static_cast<double>(rows_);
    rows_ = 0;
    return std::exchange(sums_, {});
  }

 private:
  std::vector<at::Tensor> sums_;
  int64_t rows_ = 0;
};

double rms(const at::Tensor& squares) { return std::sqrt(squares.mean().item<double>()); }
double kurtosis(const at::Tensor& squares) {
  const double mean = squares.mean().item<double>();
  return squares.square().mean().item<double>() / (mean * mean);
}

class Activations : public Probe {
 public:
  Activations(const ProbeOptions& options, double (*measure)(const at::Tensor&)) : Probe(options), measure_(measure) {}
  models::Capture* inside() override { return &channels_; }
  void before(State&, const StepData&, const StepSettings&, ProbeResults& results) override {
    const auto squares = channels_.take();
    for (size_t i = 0; i < squares.size(); ++i)
      results.add(i == 0 ? "embed" : fmt::format("layer.{}", i - 1), measure_(squares[i]));
  }

 private:
  double (*measure_)(const at::Tensor&);
  Channels channels_;
};

}  // namespace

const ProbeKind activation_rms_probe{
    "activation_rms", "root mean square of the residual stream after each block",
    [](const ProbeOptions& options) -> std::unique_ptr<Probe> { return std::make_unique<Activations>(options, rms); }};

const ProbeKind activation_kurtosis_probe{
    "activation_kurtosis", "kurtosis of the channels' root mean squares of the residual stream after each block",
    [](const ProbeOptions& options) -> std::unique_ptr<Probe> {
      return std::make_unique<Activations>(options, kurtosis);
    }};

}  // namespace cairn
