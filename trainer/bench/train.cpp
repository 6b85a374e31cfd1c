#include "trainer/bench/train.h"

#include "models/families/family.h"
#include "models/random.h"
#include "trainer/bench/sizes.h"
#include "trainer/environment.h"
#include "trainer/flops.h"
#include "trainer/setup.h"
#include "trainer/step.h"

namespace cairn::bench {
namespace {

data::Batch random_rows(const Size& size, int64_t first, int64_t count) {
  data::Batch batch{.rows = count, .context = size.context};
  const Philox draws{1, Purpose::data, 0};
  for (int64_t row = first; row < first + count; ++row) {
    for (int64_t t = 0; t < size.context; ++t) {
      const int64_t i = row * (size.context + 1) + t;
      batch.inputs.push_back(static_cast<int32_t>(draws.bits64(i) % size.vocabulary));
      batch.targets.push_back(static_cast<int32_t>(draws.bits64(i + 1) % size.vocabulary));
      batch.positions.push_back(static_cast<int32_t>(t));
      batch.segments.push_back(0);
    }
  }
  return batch;
}

// Seconds of the weights' products of one micro-batch: y = x W^T, dx = dy W, dW += dy^T x.
double weight_products(const Size& s, int repeat) {
  at::NoGradGuard no_grad;
  const int64_t rows = s.micro_batch * s.context, width = s.hidden / s.heads * (s.heads + 2 * s.kv_heads);
  struct Product {
    at::Tensor x, w, dy, y, dx, dw;
    int64_t times;
  };
  std::vector<Product> products;
  auto add = [&](int64_t n, int64_t in, int64_t out, int64_t times) {
    products.push_back({at::randn({n, in}), at::randn({out, in}), at::randn({n, out}), at::empty({n, out}),
                        at::empty({n, in}), at::zeros({out, in}), times});
  };
  add(rows, s.hidden, width, s.layers);
  add(rows, s.hidden, s.hidden, s.layers);
  add(rows, s.hidden, 2 * s.ffn, s.layers);
  add(rows, s.ffn, s.hidden, s.layers);
  add(std::min<int64_t>(rows, 256), s.hidden, s.vocabulary,
      std::max<int64_t>(1, rows / 256));  // in chunks: its logits are never held whole
  return timed(
      [&] {
        for (Product& p : products) {
          for (int64_t i = 0; i < p.times; ++i) {
            at::mm_out(p.y, p.x, p.w.t());
            at::mm_out(p.dx, p.dy, p.w);
            p.dw.addmm_(p.dy.t(), p.x);
          }
        }
      },
      1, repeat);
}

// Seconds of attention's six products of one micro-batch, half of the square ones: what causality leaves.
double attention_products(const Size& s, int repeat) {
  at::NoGradGuard no_grad;
  const int64_t batch = s.micro_batch * s.heads, width = s.hidden / s.heads;
  const at::Tensor q = at::randn({batch, s.context, width}), k = at::randn({batch, s.context, width}),
                   p = at::randn({batch, s.context, s.context});
  at::Tensor scores = at::empty_like(p), out = at::empty_like(q);
  const double seconds = timed(
      [&] {
        for (int64_t i = 0; i < s.layers; ++i) {
          at::bmm_out(scores, q, k.transpose(1, 2));  // q k^T; dout v^T is the same again
          at::bmm_out(scores, q, k.transpose(1, 2));
          for (int j = 0; j < 2; ++j) at::bmm_out(out, p, k);                  // p v, dp k
          for (int j = 0; j < 2; ++j) at::bmm_out(out, p.transpose(1, 2), k);  // dv, dk
        }
      },
      1, repeat);
  return seconds / 2;
}

}  // namespace

nlohmann::ordered_json bench_train(const TrainBenchOptions& options) {
  const Size& s = size_named(options.size);
  const auto world = parallel::World::join();
  State state(models::decoder_config(llama_config(s, s.context), true), weight_type(options.precision), *world,
              options.lanes, 0);
  state.model().parameters().initialise(0);
  optim::OptimizerOptions adamw = optim::defaults("adamw");
  adamw.lr = 3e-4;
  state.set_optimizer(adamw, 0);
  const int64_t batch = s.micro_batch * options.micro_batches * options.lanes, tokens = batch * s.context;
  const StepData data{.context = s.context, .targets = tokens, .rows = [&](int64_t first, int64_t count) {
                        return random_rows(s, first, count);
                      }};
  const StepSettings settings{.batch = batch,
                              .micro_batch = s.micro_batch,
                              .lanes = options.lanes,
                              .lr = 3e-4,
                              .products = product_type(options.precision)};
  StepResult result;
  const double seconds = timed([&] { result = train_step(state, data, settings); }, options.warmup, options.steps);
  const double digest_seconds = timed([&] { state.digest(); }, 1, options.steps);
  const double rss = peak_rss_mib();

  nlohmann::ordered_json out{{"size", options.size},
                             {"params", state.model().parameters().numel()},
                             {"threads", at::get_num_threads()},
                             {"ranks", world->size},
                             {"tokens_per_s", tokens / seconds},
                             {"step_s", seconds},
                             {"gflops", step_flops(state.model(), tokens, s.context) / seconds / 1e9},
                             {"sgemm_peak_gflops", sgemm_peak_gflops(1.0)},
                             {"peak_rss_mib", rss},
                             {"digest_share", digest_seconds / seconds},
                             {"loss", result.loss}};
  if (options.ceiling) {
    const int64_t micro_batches = batch / s.micro_batch;
    const double weights = weight_products(s, options.steps) * micro_batches,
                 attention = attention_products(s, options.steps) * micro_batches;
    const double optimizer = timed([&] { state.optimizer().step(0); }, 1, options.steps);
    const double ceiling = tokens / (weights + attention + optimizer);
    out["ceiling_tokens_per_s"] = ceiling;
    out["share_of_ceiling"] = tokens / seconds / ceiling;
    out["ceiling_seconds"] = {
        {"weight_products", weights}, {"attention_products", attention}, {"optimizer", optimizer}};
  }
  world->leave();
  return out;
}

}  // namespace cairn::bench
