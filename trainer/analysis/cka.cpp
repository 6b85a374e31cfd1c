#include "trainer/analysis/cka.h"

#include "models/layers/capture.h"
#include "trainer/analysis/metrics.h"
#include "trainer/step.h"

namespace cairn::analysis {

void HsicSums::add(const at::Tensor& x_given, const at::Tensor& y_given) {
  const at::NoGradGuard no_grad;
  at::Tensor x = x_given.to(at::kDouble), y = y_given.to(at::kDouble);
  if (n_ == 0) {
    x_shift_ = x.mean(0), y_shift_ = y.mean(0);
    xy_ = at::zeros({x.size(1), y.size(1)}, at::kDouble);
    x_ = at::zeros_like(x_shift_), y_ = at::zeros_like(y_shift_);
    xb_ = at::zeros_like(x_), ya_ = at::zeros_like(y_);
  }
  x = x - x_shift_, y = y - y_shift_;
  const at::Tensor a = x.square().sum(1), b = y.square().sum(1);  // [m]
  xy_.addmm_(x.t(), y);
  x_ += x.sum(0), y_ += y.sum(0);
  xb_ += at::mv(x.t(), b), ya_ += at::mv(y.t(), a);
  a_ += a.sum().item<double>(), b_ += b.sum().item<double>(), ab_ += a.dot(b).item<double>();
  n_ += x.size(0);
}

double HsicSums::value() const {
  if (n_ < 4) return std::nan("");
  const double n = n_;
  const double trace = xy_.square().sum().item<double>() - ab_;
  const double k = x_.square().sum().item<double>() - a_, l = y_.square().sum().item<double>() - b_;
  const double kl = (x_.dot(at::mv(xy_, y_)) - x_.dot(xb_) - y_.dot(ya_)).item<double>() + ab_;
  return (trace + k * l / ((n - 1) * (n - 2)) - 2 * kl / (n - 2)) / (n * (n - 3));
}

namespace {

constexpr int64_t kBudget = int64_t{256} << 20;  // bytes of sums at a time; more pairs take more passes over the text

// What a block of a model makes of the text; block -1: what enters block 0.
struct Activations {
  const models::Decoder* model;
  int64_t block;
};
using Pair = std::pair<Activations, Activations>;

class Streams : public models::Capture {
 public:
  Streams(const models::Decoder& model, const data::Batch& batch) {
    const at::NoGradGuard no_grad;
    ModelInput input = model_input(batch);
    rows_ = at::nonzero(input.targets >= 0).squeeze(1);  // padding is no text
    input.pass.capture = this;
    model.hidden(input.ids, input.pass);
  }
  void stream(int64_t block, const at::Tensor& x) override { blocks_[block] = x.index_select(0, rows_); }
  const at::Tensor& at(int64_t block) const { return blocks_.at(block); }

 private:
  at::Tensor rows_;
  std::map<int64_t, at::Tensor> blocks_;
};

// HSIC of each pair over all tokens of the text that have a successor to predict.
std::vector<double> hsic(const std::vector<Pair>& pairs, const FixedText& text) {
  std::vector<double> values;
  for (size_t first = 0; first < pairs.size();) {
    const int64_t width = pairs[first].first.model->config().hidden_size;
    const size_t group = std::max<int64_t>(1, kBudget / (width * width * static_cast<int64_t>(sizeof(double))));
    const size_t last = std::min(pairs.size(), first + group);
    std::vector<HsicSums> sums(last - first);
    for (const data::Batch& batch : text.batches) {
      std::map<const models::Decoder*, Streams> seen;
      for (size_t i = first; i < last; ++i) {
        const auto& [a, b] = pairs[i];
        for (const auto* model : {a.model, b.model}) seen.try_emplace(model, *model, batch);
        sums[i - first].add(seen.at(a.model).at(a.block), seen.at(b.model).at(b.block));
      }
    }
    for (const HsicSums& one : sums) values.push_back(one.value());
    first = last;
  }
  return values;
}

double alignment(double xy, double xx, double yy) { return xx > 0 && yy > 0 ? xy / std::sqrt(xx * yy) : std::nan(""); }

// Every two layers of one model: [layers + 1, layers + 1], and HSIC of each with itself.
std::vector<double> between_layers(const models::Decoder& model, const FixedText& text, std::vector<double>& own) {
  const int64_t blocks = model.config().blocks.size(), size = blocks + 1;
  std::vector<Pair> pairs;
  for (int64_t p = 0; p < size; ++p) {
    for (int64_t q = p; q < size; ++q) pairs.push_back({{&model, p - 1}, {&model, q - 1}});
  }
  const std::vector<double> values = hsic(pairs, text);
  std::vector<double> square(size * size), matrix(size * size);
  for (size_t i = 0; i < pairs.size(); ++i) {
    const int64_t p = pairs[i].first.block + 1, q = pairs[i].second.block + 1;
    square[p * size + q] = square[q * size + p] = values[i];
  }
  own.clear();
  for (int64_t p = 0; p < size; ++p) own.push_back(square[p * size + p]);
  for (int64_t p = 0; p < size; ++p) {
    for (int64_t q = 0; q < size; ++q) matrix[p * size + q] = alignment(square[p * size + q], own[p], own[q]);
  }
  return matrix;
}

// The same layer of two models: [layers + 1]. `own`: HSIC of b's layers with themselves.
std::vector<double> between_models(const models::Decoder& a, const models::Decoder& b, const FixedText& text,
                                   const std::vector<double>& own) {
  std::vector<Pair> pairs;
  for (int64_t block = -1; block + 1 < static_cast<int64_t>(own.size()); ++block) {
    pairs.push_back({{&a, block}, {&b, block}});
    pairs.push_back({{&a, block}, {&a, block}});
  }
  const std::vector<double> values = hsic(pairs, text);
  std::vector<double> result;
  for (size_t i = 0; i < own.size(); ++i) result.push_back(alignment(values[2 * i], values[2 * i + 1], own[i]));
  return result;
}

Findings cka(const States& states, size_t i) {
  const FixedText& text = states.text();
  const auto model = states.model(i);
  std::vector<double> own;
  const std::vector<double> layers = between_layers(*model, text, own);
  const int64_t size = own.size();
  Findings found{array("cka_layers", {size, size}, layers)};
  if (i == 0) return found;
  const std::vector<double> first = between_models(*states.model(0), *model, text, own);
  found.push_back(array("cka_first", {size}, first));
  found.push_back(
      array("cka_previous", {size}, i == 1 ? first : between_models(*states.model(i - 1), *model, text, own)));
  return found;
}

}  // namespace

Metric cka_metric() {
  return {.name = "cka",
          .help =
              "linear CKA (unbiased HSIC, all tokens of the text) of the residual stream before the first and after "
              "each block: between layers, and of the same layer with the first state and the state before",
          .kind = Kind::model,
          .series = {"cka_layers", "cka_first", "cka_previous"},
          .uses =
              [](const States&, size_t i) {
                if (i < 2) return i == 0 ? std::vector<size_t>{0} : std::vector<size_t>{0, 1};
                return std::vector<size_t>{0, i - 1, i};
              },
          .parameters = [](const States& s) { return s.text().key; },
          .check = [](const States& s) { s.text(); },
          .measure = cka};
}

}  // namespace cairn::analysis
