#include "trainer/objectives/preference/options.h"

#include <cmath>

#include "trainer/objectives/preference/divergence.h"
#include "trainer/objectives/preference/pair_table.h"
#include "trainer/objectives/preference/single_table.h"
#include "trainer/rl/names.h"

namespace cairn::preference {
namespace {

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> text, Args&&... args) {
  throw std::invalid_argument(fmt::format(text, std::forward<Args>(args)...));
}

// A setting that differs from its default has to act.
void acts(const char* key, bool is_set, bool used) {
  if (is_set && !used) refuse("{}: it has no part in this loss_type", key);
}

void check_numbers(const Options& o) {
  if (!(o.beta > 0) || !std::isfinite(o.beta)) refuse("beta: {} is not positive", o.beta);
  if (!(o.label_smoothing >= 0 && o.label_smoothing <= 1))
    refuse("label_smoothing: {} is not between 0 and 1", o.label_smoothing);
  if (!std::isfinite(o.f_alpha_divergence_coef))
    refuse("f_alpha_divergence_coef: {} is no number", o.f_alpha_divergence_coef);
  if (!(o.discopop_tau > 0)) refuse("discopop_tau: {} is not positive", o.discopop_tau);
  if (!std::isfinite(o.simpo_gamma)) refuse("simpo_gamma: {} is no number", o.simpo_gamma);
  if (!(o.cpo_alpha >= 0)) refuse("cpo_alpha: {} is negative or no number", o.cpo_alpha);
  if (!(o.desirable_weight >= 0)) refuse("desirable_weight: {} is negative or no number", o.desirable_weight);
  if (!(o.undesirable_weight >= 0)) refuse("undesirable_weight: {} is negative or no number", o.undesirable_weight);
}

}  // namespace

Needs check(const Options& o) {
  check_numbers(o);
  find_divergence(o.f_divergence_type);
  if (o.loss_type.empty()) refuse("loss_type: there is none");
  if (!o.loss_weights.empty() && o.loss_weights.size() != o.loss_type.size())
    refuse("loss_weights: {} weights for {} losses", o.loss_weights.size(), o.loss_type.size());
  Needs needs;
  bool smoothing = false, cpo_alpha = false, simpo_gamma = false, tau = false, divergence = false;
  for (const std::string& name : o.loss_type) {
    if (const auto single = single_losses().find(name); single != single_losses().end()) {
      if (o.loss_type.size() > 1) refuse("loss_type: {} takes single completions and goes with no other loss", name);
      needs.singles = needs.reference = true, needs.kl = single->second.kl;
      continue;
    }
    if (!pair_losses().contains(name)) {
      std::vector<std::string> names;
      for (const auto& [known, loss] : pair_losses()) names.push_back(known);
      for (const auto& [known, loss] : single_losses()) names.push_back(known);
      refuse("loss_type: '{}' is none of {}", name, fmt::join(names, ", "));
    }
    const PairLoss& loss = pair_losses().at(name);
    if (&name != &o.loss_type.front() && loss.reference != needs.reference)
      refuse("loss_type: {} with {}: one of them has a reference, the other has none", o.loss_type.front(), name);
    needs.reference = loss.reference;
    if (!loss.divergence && o.f_divergence_type != "reverse_kl")
      refuse("f_divergence_type: {} with loss_type {}, which has meaning for reverse_kl alone", o.f_divergence_type,
             name);
    divergence = true;
    smoothing |= loss.smoothing;
    cpo_alpha |= loss.likelihood == PairLoss::Likelihood::cpo_alpha;
    simpo_gamma |= loss.term == simpo, tau |= loss.term == discopop;
    if (name == "robust" && o.label_smoothing >= 0.5)
      refuse("label_smoothing: {} with loss_type robust, which needs less than 0.5", o.label_smoothing);
    if (name == "exo_pair" && !(o.label_smoothing > 0 && o.label_smoothing < 1))
      refuse("label_smoothing: {} with loss_type exo_pair, which needs it between 0 and 1 (1e-3, say)",
             o.label_smoothing);
    if (loss.likelihood == PairLoss::Likelihood::one) needs.likelihood = needs.prompt = true;
    if (loss.likelihood == PairLoss::Likelihood::cpo_alpha && o.cpo_alpha != 0) needs.likelihood = true;
  }
  if (needs.prompt && o.loss_type.size() > 1)
    refuse("loss_type: orpo, whose likelihood is that of prompts too, goes with no other loss");
  const Options usual;
  acts("label_smoothing", o.label_smoothing != usual.label_smoothing, smoothing);
  acts("cpo_alpha", o.cpo_alpha != usual.cpo_alpha, cpo_alpha);
  acts("simpo_gamma", o.simpo_gamma != usual.simpo_gamma, simpo_gamma);
  acts("discopop_tau", o.discopop_tau != usual.discopop_tau, tau);
  acts("f_divergence_type", o.f_divergence_type != usual.f_divergence_type, divergence);
  acts("f_alpha_divergence_coef", o.f_alpha_divergence_coef != usual.f_alpha_divergence_coef,
       o.f_divergence_type == "alpha_divergence");
  acts("desirable_weight", o.desirable_weight != usual.desirable_weight, needs.singles);
  acts("undesirable_weight", o.undesirable_weight != usual.undesirable_weight, needs.singles);
  return needs;
}

}  // namespace cairn::preference
