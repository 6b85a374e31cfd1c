#include "models/layers/lightning_indexer.h"

#include "models/kernels/cuda/table.h"
#include "models/kernels/ref/index_loss.h"
#include "models/kernels/ref/index_topk.h"
#include "models/layers/attend.h"
#include "models/layers/measured.h"

namespace cairn::models {
namespace {

using Mode = IndexerPass::Mode;

// Whether this pass computes gradients of the indexer. Its graph is its own, so the rest may be without gradients.
bool learns(const Pass& pass) { return pass.indexer.train && pass.indexer.mode != Mode::dense; }

// Whether the hand-written kernels take rows like these: an indexer's, or a source's of what it learns from.
bool takes_rows(const at::Tensor& x, const Pass& pass) {
  const kernels::Way way = pass.way(x);
  return way == kernels::Way::cpu || (way == kernels::Way::device && !pass.aten && kernels::cuda::takes_rows(x));
}
bool takes_indexer(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, const Pass& pass) {
  return takes_rows(q, pass) && k.scalar_type() == q.scalar_type() && w.scalar_type() == q.scalar_type();
}

// Sylvester's matrix over sqrt(size): symmetric, its own inverse.
at::Tensor hadamard(int64_t size) {
  at::Tensor h = at::ones({1, 1}, at::kFloat);
  while (h.size(0) < size) h = at::cat({at::cat({h, h}, 1), at::cat({h, -h}, 1)}, 0);
  return h / std::sqrt(static_cast<double>(size));
}

}  // namespace

LightningIndexer::LightningIndexer(Parameters& parameters, const std::string& name, int64_t hidden_size,
                                   int64_t query_size, const IndexerConfig& config, int64_t block)
    : config_(config), block_(block) {
  if (!config.owns()) return;
  const Parameters::GroupScope group(parameters, Group::indexer);
  const int64_t J = config.index_n_heads, D = config.index_head_dim;
  const LinearOptions options{.init_std = config.init_std};
  wq_ = Linear(parameters, {{name + "." + config.query, J * D}}, query_size, options);
  kw_ = Linear(parameters, {{name + ".wk", D}, {name + ".weights_proj", J}}, hidden_size, options);
  k_norm_ = Norm(parameters, name + ".k_norm", D, {.kind = NormConfig::Kind::layer, .eps = 1e-6, .bias = true});
  if (config.hadamard) hadamard_ = hadamard(D);
}

void LightningIndexer::add_cache(LayerCache& cache, int64_t capacity, const at::TensorOptions& options) const {
  if (config_.owns()) cache.rows.push_back(at::zeros({capacity, config_.index_head_dim}, options));
}

kernels::IndexOptions LightningIndexer::options(const Pass& pass) const {
  return {.batch = pass.batch,
          .topk = pass.indexer.topk ? pass.indexer.topk : config_.index_topk,
          .sinks = pass.indexer.sinks,
          .window = pass.indexer.window,
          .segments = pass.segments};
}

IndexSet LightningIndexer::project(const at::Tensor& x, const at::Tensor& query, const Rotation& layer,
                                   const Pass& pass) const {
  const at::AutoGradMode grad_mode(learns(pass));
  const int64_t N = x.size(0), J = config_.index_n_heads, D = config_.index_head_dim;
  Rotation rotation = layer;
  rotation.interleaved = config_.interleaved;
  const at::Tensor kw = kw_.forward(x.detach(), pass);  // [N, D + J]
  const auto parts = at::split_with_sizes(kw, {D, J}, 1);

  IndexSet set{.owner = this};
  set.q = rotated(wq_.forward(query.detach(), pass).view({N, J, D}), 0, rotation, pass);
  set.k = rotated(k_norm_.forward(parts[0], pass).view({N, 1, D}), 0, rotation, pass).view({N, D});
  set.w = parts[1] * (1 / std::sqrt(static_cast<double>(J * D)));
  if (hadamard_.defined()) {
    const at::Tensor turn = hadamard_.to(set.q.options());
    set.q = at::matmul(set.q, turn), set.k = at::matmul(set.k, turn);
  }
  return set;
}

IndexSet LightningIndexer::choose(const at::Tensor& x, const at::Tensor& query, const Rotation& rotation,
                                  const Pass& pass) const {
  const Mode mode = pass.indexer.mode;
  if (mode == Mode::dense) return {};
  // Attention over all keys has no use for scores that nobody learns from or looks at.
  const bool wanted = !pass.cache && (learns(pass) || pass.measured);
  if (mode == Mode::warmup && !wanted) return {};
  const bool shared = config_.users > 1;
  if (shared && !pass.index_share) throw std::logic_error("blocks that share a set need Pass::index_share");
  if (!config_.owns()) {
    IndexSet set = pass.index_share->sets[config_.owner];
    if (mode == Mode::sparse && !set.selected.defined())
      throw std::logic_error(
          fmt::format("block {} uses the set of block {}, which has not come by", block_, config_.owner));
    set.wants_attention = wanted;
    return set;
  }

  IndexSet set = project(x, query, rotation, pass);
  set.wants_attention = wanted;
  if (mode == Mode::sparse) {
    at::NoGradGuard no_grad;
    const at::Tensor q = set.q.detach(), k = set.k.detach(), w = set.w.detach().contiguous();
    const kernels::IndexOptions asked = options(pass);
    const int64_t length = pass.cache ? pass.cache->length + x.size(0) : 0;
    at::Tensor cached;
    if (pass.cache) {
      cached = pass.cache->layers[block_].rows.back();
      append_rows(cached, *pass.cache, k);
    }
    const bool fast = takes_indexer(q, cached.defined() ? cached : k, w, pass);
    if (pass.cache && pass.cache->length > 0) {
      set.selected = fast ? kernels::index_topk_decode(q, cached, w, length, asked)
                          : kernels::ref::index_topk_decode(q, cached, w, length, asked);
    } else {
      set.selected = fast ? kernels::index_topk(q, k, w, asked) : kernels::ref::index_topk(q, k, w, asked);
    }
  }
  if (shared) {
    IndexSet& kept = pass.index_share->sets[block_];
    set.sources = std::move(kept.sources);
    kept = set;
  }
  return set;
}

void LightningIndexer::learn(IndexSet& own, const kernels::MassSource& attention,
                             const kernels::AttentionOptions& options, const Pass& pass) const {
  if (!own.wants_attention) return;
  IndexSet& set = config_.users > 1 ? pass.index_share->sets.at(config_.owns() ? block_ : config_.owner) : own;
  set.sources[block_] = {attention.q.detach(), attention.k.detach(), attention.lse, attention.scale};
  if (static_cast<int64_t>(set.sources.size()) < config_.users) return;
  set.owner->finish(set, options, pass);
  set.sources.clear();
}

void LightningIndexer::finish(const IndexSet& set, const kernels::AttentionOptions& attention, const Pass& pass) const {
  std::vector<kernels::MassSource> sources;
  for (const auto& [block, source] : set.sources) sources.push_back(source);
  bool fast = takes_indexer(set.q, set.k, set.w, pass);
  for (const auto& source : sources) fast &= takes_rows(source.q, pass) && takes_rows(source.k, pass);
  const kernels::IndexOptions asked = options(pass);
  const at::Tensor q = set.q.detach(), k = set.k.detach(), w = set.w.detach().contiguous();
  const auto loss_of = [&](const at::Tensor& selected, const std::vector<kernels::MassSource>& from,
                           double coefficient) {
    return fast ? kernels::index_loss(q, k, w, selected, from, asked, coefficient)
                : kernels::ref::index_loss(q, k, w, selected, from, asked, coefficient);
  };
  const auto report_recall = [&](const kernels::IndexLoss& loss) {
    if (!loss.recall_queries) return;
    pass.measured->add(block_, "index_recall", loss.recall, loss.best_recall);  // of what the best choice has
    pass.measured->add(block_, "index_mass", loss.recall, static_cast<double>(loss.recall_queries));
  };

  if (learns(pass) && set.q.requires_grad()) {
    const kernels::IndexLoss loss = loss_of(set.selected, sources, pass.indexer.loss_coef * pass.query_scale);
    torch::autograd::backward({set.q, set.k, set.w}, {loss.dq, loss.dk, loss.dw});
    if (pass.measured) {
      pass.measured->add(block_, "index_kl", loss.kl, static_cast<double>(loss.queries));
      report_recall(loss);
    }
  } else if (pass.measured && !at::GradMode::is_enabled()) {
    const kernels::IndexLoss loss = loss_of(set.selected, sources, 0);
    pass.measured->add(block_, "index_kl", loss.kl, static_cast<double>(loss.queries));
    if (set.selected.defined()) {
      // Recall asks where attention over all keys would look.
      std::vector<kernels::MassSource> dense = sources;
      kernels::AttentionOptions all = attention;
      for (kernels::MassSource& source : dense) {
        all.scale = source.scale;
        source.lse = attend(source.q, source.k, source.k, all, pass, true).lse;
      }
      report_recall(loss_of({}, dense, 0));
    } else {
      report_recall(loss);
    }
  }
  if (pass.measured && set.selected.defined()) measure_places(set.selected, asked.topk, pass);
}

void LightningIndexer::measure_places(const at::Tensor& selected, int64_t topk, const Pass& pass) const {
  // Of the queries with more than k candidates; every eighth row of them speaks for all.
  constexpr int64_t kEvery = 8, kSinks = 4, kNear = 64;
  at::NoGradGuard no_grad;
  const int64_t N = selected.size(0);
  const at::Tensor row = at::arange(N, selected.options().dtype(at::kLong)).slice(0, 0, N, kEvery);
  const at::Tensor t = row.remainder(pass.length);  // in its sequence
  at::Tensor begin = at::zeros_like(t);             // of its document
  if (pass.segments.defined()) begin = t - pass.positions.index_select(0, row).to(at::kLong);
  const at::Tensor counts = (t - begin).ge(topk).unsqueeze(1);
  const at::Tensor s = selected.index_select(0, row).to(at::kLong);
  const at::Tensor seen = s.ge(0).logical_and(counts), sinks = (s - begin.unsqueeze(1)).lt(kSinks).logical_and(seen),
                   near = (t.unsqueeze(1) - s).lt(kNear).logical_and(seen).logical_and(sinks.logical_not());
  const double all = seen.sum().item<double>(), sink = sinks.sum().item<double>(), close = near.sum().item<double>();
  if (all == 0) return;
  pass.measured->add(block_, "index_sinks", sink, all);
  pass.measured->add(block_, "index_window", close, all);
  pass.measured->add(block_, "index_far", all - sink - close, all);
}

}  // namespace cairn::models
