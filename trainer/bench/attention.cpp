#include "trainer/bench/attention.h"

#include <cmath>

#include "models/kernels/index_loss.h"
#include "models/kernels/index_topk.h"
#include "models/kernels/sparse_attention.h"
#include "trainer/bench/sizes.h"

namespace cairn::bench {
namespace {

// Values by name, one a round.
class Times {
 public:
  void add(const std::string& name, double value) {
    for (auto& [have, values] : all_) {
      if (have == name) return values.push_back(value);
    }
    all_.push_back({name, {value}});
  }
  void medians_to(nlohmann::ordered_json& row) const {
    for (const auto& [name, values] : all_) row[name] = median(values);
  }

 private:
  std::vector<std::pair<std::string, std::vector<double>>> all_;
};

nlohmann::ordered_json bench_context(const AttentionBenchOptions& o, int64_t context) {
  const auto random = [](at::IntArrayRef shape) { return at::randn(shape, at::TensorOptions(at::kFloat)); };
  const auto q = random({context, o.heads, o.key_dim}), k = random({context, o.heads, o.key_dim}),
             v = random({context, o.heads, o.value_dim}), dout = random({context, o.heads * o.value_dim});
  const auto index_q = random({context, o.index_heads, o.index_dim}), index_k = random({context, o.index_dim}),
             index_w = random({context, o.index_heads}) / std::sqrt(static_cast<double>(o.index_heads * o.index_dim));
  const auto dq = at::empty_like(q), dk = at::empty_like(k), dv = at::empty_like(v);
  const kernels::AttentionOptions attention{.scale = 1 / std::sqrt(static_cast<double>(o.key_dim))};
  const kernels::IndexOptions indexer{.topk = o.topk};

  // [1, H, T, D] with gradients; the values as wide as the keys.
  const auto by_head = [&](const at::Tensor& x) {
    const auto wide = at::zeros({1, o.heads, context, o.key_dim});
    wide.narrow(3, 0, x.size(2)).copy_(x.transpose(0, 1).unsqueeze(0));
    return wide.requires_grad_();
  };
  const std::vector<at::Tensor> dense{by_head(q), by_head(k), by_head(v)};
  const auto dense_dout = random({1, o.heads, context, o.key_dim});
  const auto sdpa = [&] {
    return at::scaled_dot_product_attention(dense[0], dense[1], dense[2], {}, 0.0, /*is_causal=*/true, attention.scale);
  };

  Times times;
  double sink = 0;
  for (int round = -1; round < o.rounds; ++round) {
    const auto add = [&](const std::string& name, double value) {
      if (round >= 0) times.add(name, value);
    };
    at::Tensor selected;
    kernels::AttentionOutput out;
    const double index = seconds_of([&] { selected = kernels::index_topk(index_q, index_k, index_w, indexer); });
    double dense_forward = 0, dense_both = 0;
    if (o.dense) {
      at::NoGradGuard off;
      dense_forward = seconds_of([&] { sink += sdpa().numel(); });
    }
    const double forward = seconds_of([&] { out = kernels::sparse_attention_forward(q, k, v, selected, attention); });
    if (o.dense) {
      at::AutoGradMode on(true);
      dense_both = seconds_of([&] { sink += torch::autograd::grad({sdpa()}, dense, {dense_dout}).size(); });
    }
    const double both = seconds_of([&] {
      out = kernels::sparse_attention_forward(q, k, v, selected, attention);
      kernels::sparse_attention_backward(dout, q, k, v, out.out, out.lse, selected, attention, dq, dk, dv);
    });
    const std::vector<kernels::MassSource> sources{{q, k, out.lse, attention.scale}};
    const double loss =
        seconds_of([&] { sink += kernels::index_loss(index_q, index_k, index_w, selected, sources, indexer, 1).kl; });
    add("index_s", index);
    add("forward_s", forward);
    add("forward_backward_s", both);
    add("loss_s", loss);
    if (!o.dense) continue;
    add("warmup_loss_s",
        seconds_of([&] { sink += kernels::index_loss(index_q, index_k, index_w, {}, sources, {}, 1).kl; }));
    add("sdpa_forward_s", dense_forward);
    add("sdpa_forward_backward_s", dense_both);
    add("forward_ratio", dense_forward / forward);
    add("forward_backward_ratio", dense_both / both);
  }
  nlohmann::ordered_json row{{"context", context}, {"topk", o.topk}};
  times.medians_to(row);
  if (o.dense) {
    row["forward_required"] = 0.2 * context / o.topk;
    row["forward_backward_required"] = 0.15 * context / o.topk;
  }
  row["checksum"] = sink;
  return row;
}

}  // namespace

nlohmann::ordered_json bench_attention(const AttentionBenchOptions& options) {
  for (const auto& [name, value] : std::initializer_list<std::pair<const char*, int64_t>>{
           {"topk", options.topk}, {"rounds", options.rounds}, {"heads", options.heads}}) {
    if (value < 1) throw std::invalid_argument(fmt::format("{}: found {}, expected 1 or more", name, value));
  }
  at::NoGradGuard no_grad;
  at::manual_seed(0);
  nlohmann::ordered_json result{{"threads", at::get_num_threads()},   {"heads", options.heads},
                                {"key_dim", options.key_dim},         {"value_dim", options.value_dim},
                                {"index_heads", options.index_heads}, {"index_dim", options.index_dim}};
  auto& rows = result["kernels"] = nlohmann::ordered_json::array();
  for (const int64_t context : options.contexts) {
    if (context < 1) throw std::invalid_argument(fmt::format("context: found {}, expected 1 or more", context));
    rows.push_back(bench_context(options, context));
  }
  return result;
}

}  // namespace cairn::bench
