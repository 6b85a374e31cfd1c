#include "trainer/step.h"

#include "optim/norm.h"

namespace cairn {
namespace {

at::Tensor int_tensor(const std::vector<int32_t>& values) {
  at::Tensor tensor = at::empty({static_cast<int64_t>(values.size())}, at::kInt);
  std::copy(values.begin(), values.end(), tensor.data_ptr<int32_t>());
  return tensor;
}

// In the last micro-batch of a rank's last lane a block's gradients are final when the backward pass leaves it: they
// are joined with the other lanes and go on their way to the other ranks while the pass goes on.
class LastBackward : public models::Seams {
 public:
  explicit LastBackward(State& state) : state_(state) {
    for (const auto& parameter : state.model().parameters().all()) {
      // The indexer's gradients need not wait for the backward pass, and lie elsewhere.
      if (parameter.role != models::Role::matrix || parameter.group != models::Group::model ||
          !parameter.name.starts_with("model.layers."))
        continue;
      const size_t block = std::stoul(parameter.name.substr(13));
      if (ranges_.size() <= block) ranges_.resize(block + 1, {INT64_MAX, 0});
      ranges_[block].first = std::min(ranges_[block].first, parameter.offset);
      ranges_[block].second = std::max(ranges_[block].second, parameter.offset + parameter.numel());
    }
  }
  void after_backward(int64_t block) const override {
    if (block < 0 || block >= static_cast<int64_t>(ranges_.size())) return;
    const auto [begin, end] = ranges_[block];
    state_.lanes().join(begin, end - begin);
    state_.reducer().ready(begin, end - begin);
  }

 private:
  State& state_;
  std::vector<std::pair<int64_t, int64_t>> ranges_;  // of each block's matrices in the flat buffer
};

}  // namespace

ModelInput model_input(const data::Batch& batch) {
  ModelInput input{.ids = int_tensor(batch.inputs), .targets = int_tensor(batch.targets)};
  input.pass.batch = batch.rows;
  input.pass.length = batch.context;
  input.pass.positions = int_tensor(batch.positions);
  // One document a row needs no segments.
  if (std::any_of(batch.segments.begin(), batch.segments.end(), [](int32_t s) { return s != 0; }))
    input.pass.segments = int_tensor(batch.segments);
  return input;
}

StepData step_data(const data::Dataset& data, int64_t n) {
  const data::Batch batch = data.batch(n);
  const int64_t context = data.context(n);
  int64_t queries = 0;
  for (size_t i = 0; i < batch.segments.size(); ++i) {
    const bool first = static_cast<int64_t>(i) % context == 0 || batch.segments[i] != batch.segments[i - 1];
    queries += !first;
  }
  return {.context = context,
          .targets = batch.target_count(),
          .rows_count = static_cast<int64_t>(batch.segments.size()),
          .queries = queries,
          .rows = [&data, n](int64_t first, int64_t count) { return data.batch_rows(n, first, count); }};
}

namespace {

// What all ranks measured; in order of rank, so that every rank has the same.
void add_up(models::Measured& measured, parallel::World& world) {
  if (world.size == 1) return;
  std::vector<double> own;
  for (const auto& [key, sum] : measured.sums) own.insert(own.end(), {sum.sum, sum.weight});
  for (const auto& [block, counts] : measured.experts) {
    for (int64_t e = 0; e < counts.numel(); ++e)
      own.push_back(static_cast<double>(counts.const_data_ptr<int64_t>()[e]));
  }
  const std::vector<double> all = world.gather(own);
  std::vector<double> total(own.size(), 0);
  for (size_t i = 0; i < all.size(); ++i) total[i % own.size()] += all[i];
  size_t at = 0;
  for (auto& [key, sum] : measured.sums) sum = {total[at], total[at + 1]}, at += 2;
  for (auto& [block, counts] : measured.experts) {
    for (int64_t e = 0; e < counts.numel(); ++e)
      counts.mutable_data_ptr<int64_t>()[e] = static_cast<int64_t>(total[at++]);
  }
}

// What the passes of a step have in common; `row`: first sequence of the micro-batch.
void prepare_pass(models::Pass& pass, const StepData& data, const StepSettings& settings, int64_t n, int64_t row) {
  pass.products = settings.products;
  pass.reference = settings.reference;
  pass.aten = settings.aten;
  pass.keep_sums = true;
  pass.dropout = settings.dropout;
  pass.dropout_seed = settings.dropout_seed;
  pass.step = n;
  pass.first_row = row * data.context;
  pass.row_scale = 1.0 / static_cast<double>(data.rows_count);
  pass.query_scale = data.queries > 0 ? 1.0 / static_cast<double>(data.queries) : 0;
  pass.indexer = settings.indexer;
  pass.experts = settings.experts;
}

// router_aux_loss_coef: the loss is E * sum over the experts of f P, f the pooled counts of all blocks over the rows of
// all blocks, P likewise of the scores. Its gradient needs f of the whole batch, so all of it goes forward once before.
// Undefined where the model asks for no such loss.
at::Tensor pooled_balance(State& state, const StepData& data, const StepSettings& settings) {
  double coefficient = 0;
  int64_t blocks = 0, experts = 0;
  const models::DecoderConfig& config = state.model().config();
  for (int64_t i = 0; i < config.block_count(); ++i) {
    const models::BlockConfig& block = config.block(i);
    if (!block.experts || block.experts->router_aux_loss_coef == 0) continue;
    coefficient = block.experts->router_aux_loss_coef, experts = block.experts->num_experts, ++blocks;
  }
  if (blocks == 0) return {};
  const at::NoGradGuard no_grad;
  const parallel::World& world = state.world();
  const int64_t ranks = world.size, rows = settings.batch / ranks, first = world.rank * rows;
  models::Measured measured;
  for (int64_t row = 0; row < rows; row += settings.micro_batch) {
    const data::Batch batch = data.rows(first + row, std::min(settings.micro_batch, rows - row));
    ModelInput input = model_input(batch);
    prepare_pass(input.pass, data, settings, state.step + 1, first + row);
    input.pass.indexer.train = false;
    input.pass.measured = &measured;
    at::Tensor hidden = state.model().hidden(input.ids, input.pass);
    for (int64_t m = 0; m < state.model().mtp_modules(); ++m) {
      const auto next = models::mtp_rows(input.ids, input.targets, input.pass.segments, input.pass.batch, m);
      hidden = state.model().mtp_hidden(m, hidden, next.ids, input.pass);
    }
  }
  add_up(measured, state.world());
  at::Tensor counts = at::zeros({experts}, at::kDouble);
  for (const auto& [block, count] : measured.experts) counts += count.to(at::kDouble);
  const double total_rows = static_cast<double>(data.rows_count) * static_cast<double>(blocks);
  return (counts * (coefficient * static_cast<double>(experts) / (total_rows * total_rows))).to(at::kFloat);
}

// Target tokens of the whole batch that each module which predicts further tokens has.
std::vector<int64_t> mtp_targets(const State& state, const StepData& data, const StepSettings& settings) {
  std::vector<int64_t> targets;
  const int64_t modules = data.loss ? 0 : state.model().mtp_modules();
  if (modules == 0) return targets;
  const ModelInput batch = model_input(data.rows(0, settings.batch));
  for (int64_t m = 0; m < modules; ++m) {
    const auto rows = models::mtp_rows(batch.ids, batch.targets, batch.pass.segments, batch.pass.batch, m);
    targets.push_back(rows.targets.ge(0).sum().item<int64_t>());
  }
  return targets;
}

// Of the tokens per expert of each block: violation (max - mean) / mean, dead experts, entropy of the shares in nats.
void measure_loads(models::Measured& measured) {
  for (const auto& [block, counts] : measured.experts) {
    const int64_t E = counts.numel(), *count = counts.const_data_ptr<int64_t>();
    double total = 0, most = 0, dead = 0, entropy = 0;
    for (int64_t e = 0; e < E; ++e) {
      const double c = static_cast<double>(count[e]);
      total += c, most = std::max(most, c), dead += count[e] == 0;
    }
    if (total == 0) continue;
    for (int64_t e = 0; e < E; ++e) {
      const double share = static_cast<double>(count[e]) / total;
      if (share > 0) entropy -= share * std::log(share);
    }
    measured.add(block, "expert_violation", most * static_cast<double>(E) / total - 1, 1);
    measured.add(block, "dead_experts", dead, 1);
    measured.add(block, "expert_entropy", entropy, 1);
  }
}

}  // namespace

void move_routing_biases(models::Decoder& model, const models::Measured& measured, double speed) {
  if (speed == 0) return;
  const at::NoGradGuard no_grad;
  for (const auto& [block, counts] : measured.experts) {
    const auto& experts = model.config().block(block).experts;
    if (!experts || !experts->correction_bias) continue;
    const at::Tensor bias = model.parameters()
                                .buffer(fmt::format("{}.mlp.{}.e_score_correction_bias",
                                                    model.config().block_name(block), experts->gate_name))
                                .tensor;
    const int64_t E = counts.numel(), total = counts.sum().item<int64_t>(), *count = counts.const_data_ptr<int64_t>();
    at::Tensor moves = at::zeros({E}, at::kFloat);
    for (int64_t e = 0; e < E; ++e) {
      const int64_t missing = total - count[e] * E;  // sign of mean - count, exactly
      moves.data_ptr<float>()[e] = static_cast<float>(missing > 0 ? speed : missing < 0 ? -speed : 0.0);
    }
    at::Tensor(bias).add_(moves.to(bias.device()));
  }
}

StepResult train_step(State& state, const StepData& data, const StepSettings& settings, StepObserver* observer) {
  if (observer) observer->before(state, data, settings);
  parallel::World& world = state.world();
  const int64_t n = state.step + 1, lane_rows = settings.batch / settings.lanes,
                local_lanes = settings.lanes / world.size;
  const double targets = static_cast<double>(data.targets);
  const LastBackward last_backward(state);
  const bool overlapped = state.model().parameters().flat().scalar_type() == at::kFloat && world.size > 1;

  models::ExpertsPass experts = settings.experts;
  if (settings.trains_model) experts.balance = pooled_balance(state, data, settings);
  const bool trains_indexer = settings.trains_indexer && state.has(models::Group::indexer);
  // DeepSeek-V3 report, equation 25: the mean over the modules of the mean over each one's targets, times a factor.
  const std::vector<int64_t> further = mtp_targets(state, data, settings);
  std::vector<double> further_scales;
  for (const int64_t count : further) {
    further_scales.push_back(settings.mtp_loss_scaling_factor / static_cast<double>(further.size()) /
                             static_cast<double>(std::max<int64_t>(count, 1)));
  }
  const size_t numbers = 3 * (1 + further.size());
  models::Measured measured;
  std::vector<double> sums;         // [local lanes][nll, z, correct of the model, then of each module]
  std::vector<at::Tensor> waiting;  // the same where a GPU has them: read when the step's work is done
  state.reducer().begin();
  for (int64_t lane = 0; lane < local_lanes; ++lane) {
    std::vector<double> sum(numbers);
    at::Tensor device_sum;
    const int64_t first = (world.rank * local_lanes + lane) * lane_rows;
    for (int64_t row = 0; row < lane_rows; row += settings.micro_batch) {
      const int64_t rows = std::min(settings.micro_batch, lane_rows - row);
      const data::Batch batch = data.rows(first + row, rows);
      ModelInput input = model_input(batch);
      prepare_pass(input.pass, data, settings, n, first + row);
      input.pass.experts = experts;
      input.pass.measured = &measured;
      if (overlapped && lane + 1 == local_lanes && row + rows == lane_rows) input.pass.seams = &last_backward;
      const models::Loss loss = data.loss ? data.loss(state.model(), input, first + row, rows)
                                          : state.model().loss(input.ids, input.targets, input.pass, 1 / targets,
                                                               settings.z_loss, settings.trains_model, further_scales);
      sum[0] += loss.nll, sum[1] += loss.z, sum[2] += static_cast<double>(loss.correct);
      for (size_t m = 0; m < loss.mtp.size(); ++m) {
        sum[3 * m + 3] += loss.mtp[m].nll, sum[3 * m + 4] += loss.mtp[m].z;
        sum[3 * m + 5] += static_cast<double>(loss.mtp[m].correct);
      }
      if (loss.sums.defined()) device_sum = device_sum.defined() ? device_sum + loss.sums : loss.sums;
      state.collect_gradients();
    }
    if (device_sum.defined()) {
      waiting.push_back(device_sum);
    } else {
      sums.insert(sums.end(), sum.begin(), sum.end());
    }
    if (lane + 1 < local_lanes) state.lanes().next_lane();
  }
  state.lanes().finish();
  state.reducer().finish();

  if (!waiting.empty()) {
    const at::Tensor host = at::stack(waiting).cpu();  // [local lanes, numbers]
    sums.assign(host.const_data_ptr<double>(), host.const_data_ptr<double>() + host.numel());
  }
  const std::vector<double> total = world.sum_lanes(sums, numbers);
  StepResult result{
      .loss = total[0] / targets, .z_loss = settings.z_loss * total[1] / targets, .accuracy = total[2] / targets};
  add_up(measured, world);
  measure_loads(measured);
  for (size_t m = 0; m < further.size(); ++m) {
    if (further[m] == 0) continue;
    const auto block = static_cast<int64_t>(state.model().config().blocks.size() + m);
    const double count = static_cast<double>(further[m]);
    measured.add(block, "mtp_loss", total[3 * m + 3], count);
    measured.add(block, "mtp_accuracy", total[3 * m + 5], count);
    result.mtp_loss = result.mtp_loss.value_or(0) + total[3 * m + 3] / count / static_cast<double>(further.size());
  }
  result.measured = std::move(measured);
  std::vector<std::pair<int64_t, int64_t>> parts;
  for (const auto& range : state.model().parameters().groups()) parts.emplace_back(range.begin, range.end);
  const std::vector<double> norms = state.reducer().norms(parts);
  result.grad_norm = norms.front();
  if (trains_indexer) result.indexer_grad_norm = norms.back();
  result.tokens = settings.batch * data.context;
  result.targets = data.targets;
  result.finite = std::isfinite(result.grad_norm) && std::isfinite(result.loss) &&
                  std::isfinite(result.indexer_grad_norm.value_or(0)) && std::isfinite(result.mtp_loss.value_or(0));
  const bool spike = settings.skip_loss_above > 0 && result.loss > settings.skip_loss_above;
  result.updated = result.finite && !spike;
  if (observer) observer->gradients(state, result);
  if (result.updated) {
    if (settings.trains_model)
      state.optimizer().step(settings.lr, optim::clip_coefficient(result.grad_norm, settings.clip));
    if (trains_indexer)
      state.optimizer(models::Group::indexer)
          .step(settings.indexer_lr, optim::clip_coefficient(*result.indexer_grad_norm, settings.indexer_clip));
    if (settings.trains_model) move_routing_biases(state.model(), result.measured, settings.bias_update_speed);
    state.gather_weights();
    if (state.ema()) state.ema()->update();
  }
  state.clear_gradients(result.updated);
  state.step = n;
  if (observer) observer->after(state, data, settings, result);
  return result;
}

}  // namespace cairn
