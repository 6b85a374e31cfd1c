#include "trainer/bench/train.h"

#include "models/families/family.h"
#include "models/random.h"
#include "trainer/bench/sizes.h"
#include "trainer/device.h"
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

// Seconds of the weights' products of one micro-batch, on the run's own weights and gradients and in the order of a
// step: y = x W^T block by block, the head's in chunks (its logits are never held whole), then dx = dy W, dW += dy^T x
// the way back.
double weight_products(State& state, const Size& s, int repeat, const at::TensorOptions& like) {
  at::NoGradGuard no_grad;
  const int64_t rows = s.micro_batch * s.context, head_rows = std::min<int64_t>(rows, 256);
  struct Product {
    at::Tensor w, dw, x, y, dx;
  };
  const at::ScalarType type = like.dtype().toScalarType();
  // Products of equal shape share their activations.
  std::map<std::tuple<int64_t, int64_t, int64_t>, Product> shapes;
  auto product = [&](const at::Tensor& leaf, int64_t n) {
    const int64_t out = leaf.size(0), in = leaf.size(1);
    Product& shape = shapes[{n, in, out}];
    if (!shape.x.defined())
      shape = {{}, {}, at::randn({n, in}, like), at::randn({n, out}, like), at::empty({n, in}, like)};
    return Product{leaf.detach().to(type), leaf.grad().to(type), shape.x, shape.y, shape.dx};
  };
  std::vector<Product> blocks;
  const at::Tensor* last = nullptr;
  for (const auto& parameter : state.model().parameters().all()) {
    const bool same = last && parameter.leaf.is_same(*last);  // q, k, v are one product
    last = &parameter.leaf;
    if (parameter.role == models::Role::matrix && !same) blocks.push_back(product(parameter.leaf, rows));
  }
  const Product head = product(state.model().parameters().at("model.embed_tokens.weight").leaf, head_rows);
  auto forward = [](const Product& p) { at::mm_out(const_cast<at::Tensor&>(p.y), p.x, p.w.t()); };
  auto backward = [](const Product& p) {
    at::mm_out(const_cast<at::Tensor&>(p.dx), p.y, p.w);
    at::Tensor(p.dw).addmm_(p.y.t(), p.x);
  };
  return timed(
      [&] {
        for (const Product& p : blocks) forward(p);
        for (int64_t row = 0; row < rows; row += head_rows) forward(head), backward(head);
        for (auto p = blocks.rbegin(); p != blocks.rend(); ++p) backward(*p);
        wait_for(like.device());
      },
      1, repeat);
}

// Seconds of attention's six products of one micro-batch, half of the square ones: what causality leaves.
double attention_products(const Size& s, int repeat, const at::TensorOptions& like) {
  at::NoGradGuard no_grad;
  const int64_t batch = s.micro_batch * s.heads, width = s.hidden / s.heads;
  const at::Tensor q = at::randn({batch, s.context, width}, like), k = at::randn({batch, s.context, width}, like),
                   p = at::randn({batch, s.context, s.context}, like);
  at::Tensor scores = at::empty_like(p), out = at::empty_like(q);
  const double seconds = timed(
      [&] {
        for (int64_t i = 0; i < s.layers; ++i) {
          at::bmm_out(scores, q, k.transpose(1, 2));  // q k^T; dout v^T is the same again
          at::bmm_out(scores, q, k.transpose(1, 2));
          for (int j = 0; j < 2; ++j) at::bmm_out(out, p, k);                  // p v, dp k
          for (int j = 0; j < 2; ++j) at::bmm_out(out, p.transpose(1, 2), k);  // dv, dk
        }
        wait_for(like.device());
      },
      1, repeat);
  return seconds / 2;
}

}  // namespace

nlohmann::ordered_json bench_train(const TrainBenchOptions& options) {
  const Size& s = size_named(options.size);
  const auto world = parallel::World::join();
  const at::Device device = choose_device(options.device, world->local_rank);
  const bool fast = options.kernels == "fast";
  use_device_passes(fast);
  State state(models::decoder_config(llama_config(s, s.context), true), weight_type(options.precision), *world,
              options.lanes, 0, false, device);
  state.model().parameters().initialise(0);
  optim::OptimizerOptions adamw = optim::defaults("adamw");
  adamw.lr = 3e-4;
  adamw.reference = !fast;
  state.set_optimizer(adamw, 0);
  const int64_t batch = s.micro_batch * options.micro_batches * options.lanes, tokens = batch * s.context;
  const StepData data{.context = s.context, .targets = tokens, .rows = [&](int64_t first, int64_t count) {
                        return random_rows(s, first, count);
                      }};
  const StepSettings settings{.batch = batch,
                              .micro_batch = s.micro_batch,
                              .lanes = options.lanes,
                              .lr = 3e-4,
                              .products = product_type(options.precision),
                              .reference = options.kernels == "reference",
                              .aten = options.kernels == "aten"};
  StepResult result;
  const double seconds = timed(
      [&] {
        result = train_step(state, data, settings);
        wait_for(device);
      },
      options.warmup, options.steps);
  const double digest_seconds = timed([&] { state.digest(); }, 1, options.steps);
  const double rss = peak_rss_mib();

  nlohmann::ordered_json out{
      {"size", options.size},
      {"params", state.model().parameters().numel()},
      {"device", device_name(device)},
      {"threads", at::get_num_threads()},
      {"ranks", world->size},
      {"tokens_per_s", tokens / seconds},
      {"step_s", seconds},
      {"gflops", step_flops(state.model(), tokens, s.context) / seconds / 1e9},
      {"sgemm_peak_gflops",
       device.is_cpu() ? sgemm_peak_gflops(1.0) : device_peak_gflops(device, settings.products, 1.0)},
      {"peak_rss_mib", rss},
      {"digest_share", digest_seconds / seconds},
      {"loss", result.loss}};
  if (options.ceiling) {
    const int64_t micro_batches = batch / s.micro_batch;
    const auto like = at::TensorOptions(device.is_cpu() ? at::kFloat : settings.products).device(device);
    const double weights = weight_products(state, s, options.steps, like) * micro_batches,
                 attention = attention_products(s, options.steps, like) * micro_batches;
    const double optimizer = timed(
        [&] {
          state.optimizer().step(0);
          wait_for(device);
        },
        1, options.steps);
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
