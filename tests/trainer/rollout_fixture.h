// Small models and requests that the tests of rollouts share.
#pragma once

#include <gtest/gtest.h>

#include <ATen/Parallel.h>

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "models/families/family.h"
#include "trainer/rollout/engine.h"

namespace cairn::rollout {

// As the program does before MKL loads.
inline const bool kReproducible = setenv("MKL_CBWR", "AVX2,STRICT", 0) == 0;

using Json = nlohmann::ordered_json;

// Weights large enough that attention and distributions are not flat.
inline models::Decoder model_of(Json json) {
  json["initializer_range"] = 0.15;
  models::Decoder model(models::decoder_config(json, true), at::kFloat);
  model.parameters().initialise(5);
  return model;
}

inline Json llama(const Json& changes = {}) {
  Json json{{"model_type", "llama"},    {"vocab_size", 257},      {"hidden_size", 48},
            {"intermediate_size", 80},  {"num_hidden_layers", 2}, {"num_attention_heads", 6},
            {"num_key_value_heads", 2}, {"head_dim", 16},         {"max_position_embeddings", 320}};
  if (!changes.is_null()) json.update(changes);
  return json;
}

inline std::vector<int32_t> random_prompt(int64_t length, uint64_t seed) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  const at::Tensor ids = at::randint(0, 256, {length}, generator, at::TensorOptions(at::kInt));
  return {ids.data_ptr<int32_t>(), ids.data_ptr<int32_t>() + length};
}

// Prompts on both sides of tiles and pages.
inline std::vector<Request> requests_of(const std::vector<int64_t>& lengths, int64_t samples) {
  std::vector<Request> requests;
  for (size_t i = 0; i < lengths.size(); ++i)
    requests.push_back({random_prompt(lengths[i], 40 + i), static_cast<int64_t>(7 * i + 3), samples});
  return requests;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

inline void expect_same(const Sample& a, const Sample& b, const std::string& what) {
  const std::string name =
      what + ", prompt " + std::to_string(b.prompt_index) + ", sample " + std::to_string(b.sample_index);
  EXPECT_EQ(a.prompt_index, b.prompt_index) << name;
  EXPECT_EQ(a.sample_index, b.sample_index) << name;
  EXPECT_EQ(a.ids, b.ids) << name;
  EXPECT_TRUE(same_bits(a.logprobs, b.logprobs)) << name;
  EXPECT_EQ(a.finish_reason, b.finish_reason) << name;
  EXPECT_EQ(a.text, b.text) << name;
}

// What the trainer makes of the completion: its pass over prompt and completion.
inline std::vector<float> trained(const models::Decoder& model, const Request& request, const Sample& sample,
                                  double temperature = 1) {
  std::vector<int32_t> ids = request.prompt;
  ids.insert(ids.end(), sample.ids.begin(), sample.ids.end());
  const int64_t rows = static_cast<int64_t>(ids.size()) - 1;
  const at::Tensor all = at::tensor(at::ArrayRef<int32_t>(ids), at::TensorOptions(at::kInt));
  const models::Pass pass{.length = rows, .positions = at::arange(rows, at::kInt)};
  const at::Tensor logprobs =
      model.score(all.narrow(0, 0, rows), all.narrow(0, 1, rows).contiguous(), pass, {.temperature = temperature})
          .logprobs;
  const float* end = logprobs.const_data_ptr<float>() + rows;
  return {end - sample.ids.size(), end};
}

class Threads {
 public:
  explicit Threads(int n) : before_(at::get_num_threads()) { at::set_num_threads(n); }
  ~Threads() { at::set_num_threads(before_); }

 private:
  int before_;
};

}  // namespace cairn::rollout
