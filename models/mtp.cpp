#include "models/mtp.h"

namespace cairn::models {

MtpModule::MtpModule(Parameters& parameters, const DecoderConfig& config, int64_t module,
                     std::shared_ptr<RopeTable> rope)
    : place_(config.blocks.size() + 1 + module),
      enorm_(parameters, fmt::format("mtp.layers.{}.enorm", module), config.hidden_size, config.norm),
      hnorm_(parameters, fmt::format("mtp.layers.{}.hnorm", module), config.hidden_size, config.norm),
      norm_(parameters, fmt::format("mtp.layers.{}.shared_head.norm", module), config.hidden_size, config.norm),
      eh_proj_(parameters, {{fmt::format("mtp.layers.{}.eh_proj", module), config.hidden_size}}, 2 * config.hidden_size,
               {.init_std = config.init_std}),
      block_(parameters, config.block_name(config.blocks.size() + module), config, config.blocks.size() + module,
             std::move(rope)) {}

at::Tensor MtpModule::forward(const at::Tensor& embedded, const at::Tensor& hidden, const Pass& pass,
                              bool checkpointing) const {
  const at::Tensor both = at::cat({enorm_.forward(embedded, pass), hnorm_.forward(hidden, pass)}, 1);  // [N, 2C]
  const Block::Stream out = block_.run({eh_proj_.forward(both, pass), at::Tensor()}, pass, place_, checkpointing);
  return out.pending.defined() ? norm_.add(out.x, out.pending, pass).second : norm_.forward(out.x, pass);
}

MtpRows mtp_rows(const at::Tensor& ids, const at::Tensor& targets, const at::Tensor& segments, int64_t batch,
                 int64_t module) {
  const int64_t T = ids.size(0) / batch, d = module + 1, left = std::max<int64_t>(T - d, 0);
  at::Tensor own_ids = ids.clone().view({batch, T}), own_targets = at::full_like(targets, -1).view({batch, T});
  if (left == 0) return {own_ids.view({-1}), own_targets.view({-1})};
  // [B, T - d]: the later one of each pair of positions.
  const auto later = [&](const at::Tensor& x) { return x.view({batch, T}).narrow(1, d, left); };
  at::Tensor next = later(ids), target = later(targets);
  if (segments.defined()) {
    const at::Tensor same = later(segments).eq(segments.view({batch, T}).narrow(1, 0, left));
    next = at::where(same.to(ids.device()), next, own_ids.narrow(1, 0, left));
    target = at::where(same.to(targets.device()), target, own_targets.narrow(1, 0, left));
  }
  own_ids.narrow(1, 0, left).copy_(next);
  own_targets.narrow(1, 0, left).copy_(target);
  return {own_ids.view({-1}), own_targets.view({-1})};
}

}  // namespace cairn::models
