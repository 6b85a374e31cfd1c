// What rl_losses_test.py compares with TRL: losses, advantages and divergences of a request file's numbers. One process
// for all cases.
//
//   loss_driver REQUEST.json ANSWER.json
//   {"cases": [{"kind": "policy" | "advantages" | "pairs" | "singles" | "distill" | "distill_topk" | "overlong" |
//               "defaults", "options": {...}, and tensors as nested arrays by the names of the structs; NaN is null}]}
//
// The answer holds one object a case: values, gradients and metrics, or {"error": message}.
#include <fstream>
#include <iostream>

#include "trainer/objectives/distill_loss.h"
#include "trainer/objectives/preference/pairs.h"
#include "trainer/objectives/preference/singles.h"
#include "trainer/rl/advantages.h"
#include "trainer/rl/policy_loss.h"

namespace {

using namespace cairn;
using nlohmann::json;

void flatten(const json& value, std::vector<double>& flat, std::vector<int64_t>& shape, size_t depth = 0) {
  if (!value.is_array()) {
    flat.push_back(value.is_null() ? NAN : value.get<double>());
    return;
  }
  if (shape.size() <= depth) shape.push_back(static_cast<int64_t>(value.size()));
  for (const json& each : value) flatten(each, flat, shape, depth + 1);
}
at::Tensor tensor(const json& request, const char* name, at::ScalarType type = at::kFloat) {
  if (!request.contains(name) || request.at(name).is_null()) return {};
  std::vector<double> flat;
  std::vector<int64_t> shape;
  flatten(request.at(name), flat, shape);
  return at::tensor(flat, at::kDouble).to(type).view(shape).contiguous();
}

json nested(const at::Tensor& x) {
  if (!x.defined()) return nullptr;
  json out = json::array();
  for (int64_t i = 0; i < x.size(0); ++i) {
    if (x.dim() > 1)
      out.push_back(nested(x[i]));
    else
      out.push_back(x[i].item<double>());
  }
  return out;
}

// Reads and writes the fields of an options struct by their names.
class Fields {
 public:
  Fields(const json* in, json* out) : in_(in), out_(out) {}
  template <class T>
  void operator()(const char* name, T& field) {
    if (out_) (*out_)[name] = field;
    if (!in_ || !in_->contains(name)) return;
    field = in_->at(name).get<T>();
    ++read_;
  }
  template <class T>
  void operator()(const char* name, std::optional<T>& field) {
    if (out_) (*out_)[name] = field ? json(*field) : json(nullptr);
    if (!in_ || !in_->contains(name)) return;
    field = in_->at(name).is_null() ? std::nullopt : std::optional<T>(in_->at(name).get<T>());
    ++read_;
  }
  // A request that names what no struct has would test nothing.
  void finish() const {
    if (in_ && read_ != in_->size()) throw std::runtime_error("an option of the request is unknown: " + in_->dump());
  }

 private:
  const json* in_;
  json* out_;
  size_t read_ = 0;
};

void visit(Fields& f, rl::PolicyOptions& o) {
  f("loss_type", o.loss_type), f("importance_sampling_level", o.importance_sampling_level), f("epsilon", o.epsilon);
  f("epsilon_high", o.epsilon_high), f("delta", o.delta), f("beta", o.beta), f("kl_estimator", o.kl_estimator);
  f("kl_in_reward", o.kl_in_reward), f("use_bias_correction_kl", o.use_bias_correction_kl);
  f("mask_truncated_completions", o.mask_truncated_completions), f("top_entropy_quantile", o.top_entropy_quantile);
  f("off_policy_mask_threshold", o.off_policy_mask_threshold), f("sapo_temperature_neg", o.sapo_temperature_neg);
  f("sapo_temperature_pos", o.sapo_temperature_pos), f("vespo_k_pos", o.vespo_k_pos);
  f("vespo_lambda_pos", o.vespo_lambda_pos), f("vespo_k_neg", o.vespo_k_neg), f("vespo_lambda_neg", o.vespo_lambda_neg);
  f("max_completion_length", o.max_completion_length), f("entropy_coef", o.entropy_coef);
  f("use_adaptive_entropy", o.use_adaptive_entropy), f("entropy_coef_min", o.entropy_coef_min);
  f("entropy_coef_max", o.entropy_coef_max), f("entropy_coef_delta", o.entropy_coef_delta);
  f("entropy_target", o.entropy_target);
  f("vllm_importance_sampling_correction", o.vllm_importance_sampling_correction);
  f("vllm_importance_sampling_mode", o.vllm_importance_sampling_mode);
  f("vllm_importance_sampling_clip_max", o.vllm_importance_sampling_clip_max);
  f("vllm_importance_sampling_clip_min", o.vllm_importance_sampling_clip_min);
}
void visit(Fields& f, rl::AdvantageOptions& o) {
  f("advantage_estimator", o.advantage_estimator), f("num_generations", o.num_generations);
  f("reward_weights", o.reward_weights), f("multi_objective_aggregation", o.multi_objective_aggregation);
  f("scale_rewards", o.scale_rewards), f("normalize_advantages", o.normalize_advantages);
  f("reward_clip_min", o.reward_clip_min), f("reward_clip_max", o.reward_clip_max), f("gamma", o.gamma);
  f("lam", o.lam);
}
void visit(Fields& f, preference::Options& o) {
  f("loss_type", o.loss_type), f("loss_weights", o.loss_weights), f("beta", o.beta);
  f("label_smoothing", o.label_smoothing), f("f_divergence_type", o.f_divergence_type);
  f("f_alpha_divergence_coef", o.f_alpha_divergence_coef), f("discopop_tau", o.discopop_tau);
  f("simpo_gamma", o.simpo_gamma), f("cpo_alpha", o.cpo_alpha), f("desirable_weight", o.desirable_weight);
  f("undesirable_weight", o.undesirable_weight);
}
void visit(Fields& f, DistillOptions& o) {
  f("beta", o.beta), f("temperature", o.temperature), f("loss_add_tail", o.loss_add_tail);
}

template <class Options>
Options options_of(const json& request, const char* name = "options") {
  Options options;
  const json none = json::object();
  Fields fields(request.contains(name) ? &request.at(name) : &none, nullptr);
  visit(fields, options);
  fields.finish();
  return options;
}
template <class Options>
json defaults_of() {
  Options options;
  json out;
  Fields fields(nullptr, &out);
  visit(fields, options);
  return out;
}

json policy(const json& request) {
  const auto options = options_of<rl::PolicyOptions>(request);
  rl::AdvantageOptions advantage;
  if (options.loss_type == "rloo") advantage.advantage_estimator = "rloo";
  const auto said = rl::check(options, advantage);
  const rl::PolicyBatch batch{.logprobs = tensor(request, "logprobs"),
                              .old_logprobs = tensor(request, "old_logprobs"),
                              .ref_logprobs = tensor(request, "ref_logprobs"),
                              .rollout_logprobs = tensor(request, "rollout_logprobs"),
                              .entropies = tensor(request, "entropies"),
                              .mask = tensor(request, "mask", at::kBool),
                              .advantages = tensor(request, "advantages"),
                              .truncated = tensor(request, "truncated", at::kBool)};
  double threshold = 0;
  if (options.top_entropy_quantile < 1) {
    threshold = rl::entropy_threshold(rl::counted_entropies(batch.mask, batch.truncated, options, batch.entropies),
                                      options.top_entropy_quantile);
  }
  const rl::PolicyCounts step = rl::count(batch.mask, batch.truncated, options, batch.entropies, threshold);
  const rl::PolicyOutput out = rl::policy_loss(batch, step, options);
  return {{"loss", out.loss},
          {"dlogprobs", nested(out.dlogprobs)},
          {"dentropies", nested(out.dentropies)},
          {"metrics", out.metrics.values()},
          {"said", said}};
}

json advantages(const json& request) {
  const auto options = options_of<rl::AdvantageOptions>(request);
  const auto policy = options_of<rl::PolicyOptions>(request, "policy");
  rl::check(policy, options);
  const rl::Advantages out = rl::advantages({.rewards = tensor(request, "rewards"),
                                             .mask = tensor(request, "mask", at::kBool),
                                             .old_logprobs = tensor(request, "old_logprobs"),
                                             .ref_logprobs = tensor(request, "ref_logprobs"),
                                             .names = request.value("names", std::vector<std::string>())},
                                            policy, options);
  return {{"advantages", nested(out.advantages)}, {"metrics", out.metrics.values()}};
}

json pairs(const json& request) {
  const preference::PairBatch batch{.chosen_logps = tensor(request, "chosen_logps"),
                                    .rejected_logps = tensor(request, "rejected_logps"),
                                    .ref_chosen_logps = tensor(request, "ref_chosen_logps"),
                                    .ref_rejected_logps = tensor(request, "ref_rejected_logps"),
                                    .chosen_lengths = tensor(request, "chosen_lengths", at::kLong),
                                    .rejected_lengths = tensor(request, "rejected_lengths", at::kLong),
                                    .likelihood = request.value("likelihood", 0.0)};
  const preference::PairCounts step{.pairs = batch.chosen_logps.size(0),
                                    .likelihood_tokens = request.value("likelihood_tokens", int64_t{0})};
  const auto out = preference::pair_loss(batch, step, options_of<preference::Options>(request));
  return {{"loss", out.loss},
          {"dchosen", nested(out.dchosen)},
          {"drejected", nested(out.drejected)},
          {"dlikelihood", out.dlikelihood},
          {"metrics", out.metrics.values()}};
}

json singles(const json& request) {
  const preference::SingleBatch batch{.logps = tensor(request, "logps"),
                                      .ref_logps = tensor(request, "ref_logps"),
                                      .desirable = tensor(request, "desirable", at::kBool)};
  const double kl = preference::kto_kl(tensor(request, "kl_logps"), tensor(request, "ref_kl_logps"));
  const auto out = preference::single_loss(batch, batch.logps.size(0), kl, options_of<preference::Options>(request));
  return {{"loss", out.loss}, {"dlogps", nested(out.dlogps)}, {"metrics", out.metrics.values()}};
}

json distill(const json& request, bool topk) {
  const auto options = options_of<DistillOptions>(request);
  const at::Tensor student = tensor(request, "student"), mask = tensor(request, "mask", at::kBool);
  const at::Tensor dlogits = at::zeros_like(student);
  const double scale = request.at("scale");
  const DistillOutput out = topk ? distill_loss_topk(student, tensor(request, "ids", at::kInt),
                                                     tensor(request, "logprobs"), mask, scale, options, dlogits)
                                 : distill_loss(student, tensor(request, "teacher"), mask, scale, options, dlogits);
  return {{"loss", out.loss}, {"dlogits", nested(dlogits)}, {"entropy", out.entropy}};
}

json overlong(const json& request) {
  json out = json::array();
  for (const json& length : request.at("lengths"))
    out.push_back(
        rl::soft_overlong_punishment(length, request.at("max_completion_len"), request.at("soft_punish_cache")));
  return {{"rewards", out}};
}

json defaults(const json&) {
  return {{"policy", defaults_of<rl::PolicyOptions>()},
          {"advantages", defaults_of<rl::AdvantageOptions>()},
          {"preference", defaults_of<preference::Options>()},
          {"distill", defaults_of<DistillOptions>()}};
}

const std::map<std::string, std::function<json(const json&)>> kKinds = {
    {"policy", policy},
    {"advantages", advantages},
    {"pairs", pairs},
    {"singles", singles},
    {"distill", [](const json& request) { return distill(request, false); }},
    {"distill_topk", [](const json& request) { return distill(request, true); }},
    {"overlong", overlong},
    {"defaults", defaults},
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: loss_driver REQUEST.json ANSWER.json\n";
    return 2;
  }
  json request, answers = json::array();
  std::ifstream(argv[1]) >> request;
  for (const json& one : request.at("cases")) {
    try {
      answers.push_back(kKinds.at(one.at("kind"))(one));
    } catch (const std::exception& error) {
      answers.push_back({{"error", error.what()}});
    }
  }
  std::ofstream(argv[2]) << answers.dump();
  return 0;
}
