#include "trainer/gguf_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <optional>
#include <set>

#include "trainer/data/tokenizer/gguf.h"

namespace cairn {
namespace {

using checkpoints::Gguf;
using checkpoints::GgufTensor;
using Layout = GgufLayout;

const std::vector<GgufName> kOuter = {
    {"token_embd", "model.embed_tokens"}, {"output_norm", "model.norm"}, {"output", "lm_head"}};

// Attention and the gated feed-forward of Llama and those after it, without the norms.
std::vector<GgufName> gated(std::vector<GgufName> more, Layout q = Layout::plain, Layout k = Layout::plain) {
  std::vector<GgufName> names = {{"attn_q", "self_attn.q_proj", q}, {"attn_k", "self_attn.k_proj", k},
                                 {"attn_v", "self_attn.v_proj"},    {"attn_output", "self_attn.o_proj"},
                                 {"ffn_gate", "mlp.gate_proj"},     {"ffn_up", "mlp.up_proj"},
                                 {"ffn_down", "mlp.down_proj"}};
  names.insert(names.end(), more.begin(), more.end());
  return names;
}

const GgufName kAttentionNorm = {"attn_norm", "input_layernorm"}, kMlpNorm = {"ffn_norm", "post_attention_layernorm"};
const GgufName kQNorm = {"attn_q_norm", "self_attn.q_norm"}, kKNorm = {"attn_k_norm", "self_attn.k_norm"};
const GgufName kAfterAttention = {"post_attention_norm", "post_attention_layernorm"},
               kAfterMlp = {"post_ffw_norm", "post_feedforward_layernorm"};

const std::vector<GgufArchitecture> kArchitectures = {
    {"gemma3", "gemma3_text", "model.layers.", kOuter,
     gated({kAttentionNorm, kQNorm, kKNorm, kAfterAttention, {"ffn_norm", "pre_feedforward_layernorm"}, kAfterMlp}), 1},
    {"gpt2",
     "gpt2",
     "transformer.h.",
     {{"token_embd", "transformer.wte"},
      {"position_embd", "transformer.wpe"},
      {"output_norm", "transformer.ln_f"},
      {"output", "lm_head"}},
     {{"attn_norm", "ln_1"},
      {"attn_qkv", "attn.c_attn", Layout::transposed},
      {"attn_output", "attn.c_proj", Layout::transposed},
      {"ffn_norm", "ln_2"},
      {"ffn_up", "mlp.c_fc", Layout::transposed},
      {"ffn_down", "mlp.c_proj", Layout::transposed}}},
    {"gptneox",
     "gpt_neox",
     "gpt_neox.layers.",
     {{"token_embd", "gpt_neox.embed_in"}, {"output_norm", "gpt_neox.final_layer_norm"}, {"output", "embed_out"}},
     {kAttentionNorm,
      {"attn_qkv", "attention.query_key_value", Layout::qkv_stacked},
      {"attn_output", "attention.dense"},
      kMlpNorm,
      {"ffn_up", "mlp.dense_h_to_4h"},
      {"ffn_down", "mlp.dense_4h_to_h"}}},
    {"llama", "llama", "model.layers.", kOuter,
     gated({kAttentionNorm, kMlpNorm}, Layout::q_interleaved, Layout::k_interleaved)},
    {"olmo2", "olmo2", "model.layers.", kOuter, gated({kQNorm, kKNorm, kAfterAttention, kAfterMlp})},
    {"qwen2", "qwen2", "model.layers.", kOuter, gated({kAttentionNorm, kMlpNorm})},
    {"qwen3", "qwen3", "model.layers.", kOuter, gated({kAttentionNorm, kQNorm, kKNorm, kMlpNorm})},
    {"smollm3", "smollm3", "model.layers.", kOuter,
     gated({kAttentionNorm, kMlpNorm}, Layout::q_interleaved, Layout::k_interleaved)},
};

// Described by the metadata, and read there.
constexpr const char* kRopeFactors = "rope_freqs.weight";

struct Target {
  std::string name;
  Layout layout;
};

std::optional<Target> target_of(const GgufArchitecture& architecture, const std::string& name) {
  const size_t dot = name.rfind('.');
  if (dot == std::string::npos) return std::nullopt;
  const std::string stem = name.substr(0, dot), ending = name.substr(dot);
  if (ending != ".weight" && ending != ".bias") return std::nullopt;
  const auto find = [&](const std::vector<GgufName>& names, const std::string& wanted,
                        const std::string& prefix) -> std::optional<Target> {
    for (const GgufName& row : names)
      if (wanted == row.gguf) return Target{prefix + row.hugging_face + ending, row.layout};
    return std::nullopt;
  };
  if (!stem.starts_with("blk.")) return find(architecture.outer, stem, "");
  const size_t next = stem.find('.', 4);
  if (next == std::string::npos) return std::nullopt;
  const std::string number = stem.substr(4, next - 4);
  int64_t block = -1;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), block);
  if (error != std::errc() || end != number.data() + number.size() || block < 0 || std::to_string(block) != number)
    return std::nullopt;
  return find(architecture.inner, stem.substr(next + 1), architecture.block_prefix + number + ".");
}

// [H, A, B, rest] -> [H, B, A, rest], elements of `rest` numbers: the interleaved rows (A = D/2, B = 2) back to halves.
void swap_inner(const float* from, float* to, int64_t heads, int64_t a, int64_t b, int64_t rest) {
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t i = 0; i < a; ++i)
      for (int64_t j = 0; j < b; ++j)
        std::memcpy(to + ((h * b + j) * a + i) * rest, from + ((h * a + i) * b + j) * rest, rest * sizeof(float));
}

void transpose(const float* from, float* to, int64_t rows, int64_t columns) {
  constexpr int64_t kTile = 32;
#pragma omp parallel for
  for (int64_t r0 = 0; r0 < rows; r0 += kTile)
    for (int64_t c0 = 0; c0 < columns; c0 += kTile)
      for (int64_t r = r0; r < std::min(rows, r0 + kTile); ++r)
        for (int64_t c = c0; c < std::min(columns, c0 + kTile); ++c) to[c * rows + r] = from[r * columns + c];
}

struct Heads {
  int64_t query, key;
};

// Whether the tensor divides as its layout needs it.
bool fits(Layout layout, const std::vector<int64_t>& shape, const Heads& heads) {
  const int64_t rows = shape.empty() ? 1 : shape[0];
  switch (layout) {
    case Layout::plain:
      return true;
    case Layout::q_interleaved:
      return rows % (2 * heads.query) == 0;
    case Layout::k_interleaved:
      return rows % (2 * heads.key) == 0;
    case Layout::transposed:
      return shape.size() <= 2;
    case Layout::qkv_stacked:
      return rows % (3 * heads.query) == 0;
  }
  return false;
}

void rearrange(Layout layout, const std::vector<int64_t>& shape, const Heads& heads, const float* from, float* to) {
  const int64_t rows = shape[0];
  int64_t rest = 1;
  for (size_t d = 1; d < shape.size(); ++d) rest *= shape[d];
  switch (layout) {
    case Layout::plain:
      std::memcpy(to, from, rows * rest * sizeof(float));
      return;
    case Layout::transposed:
      return transpose(from, to, rows, rest);
    case Layout::q_interleaved:
      return swap_inner(from, to, heads.query, rows / heads.query / 2, 2, rest);
    case Layout::k_interleaved:
      return swap_inner(from, to, heads.key, rows / heads.key / 2, 2, rest);
    case Layout::qkv_stacked:
      return swap_inner(from, to, 1, 3, heads.query, rows / heads.query / 3 * rest);
  }
}

int64_t whole(const Gguf& file, const std::string& key, int64_t otherwise) {
  const auto* value = file.find(key);
  if (!value) return otherwise;
  const auto all = value->integers();
  return all.empty() ? 0 : all[0];
}

}  // namespace

const std::vector<GgufArchitecture>& gguf_architectures() { return kArchitectures; }

const GgufArchitecture& gguf_architecture(const Gguf& file) {
  const auto fail = [&](const std::string& what) {
    throw std::runtime_error(fmt::format("{}: {}", file.path().string(), what));
  };
  if (const auto* type = file.find("general.type"); type && type->text() != "model")
    fail(fmt::format("holds a {} (general.type), expected a model", type->text()));
  if (const auto* parts = file.find("split.count"); parts && parts->integer() > 1) {
    fail(fmt::format("is one of {} parts of a model (split.count): join them first (llama.cpp: gguf-split --merge)",
                     parts->integer()));
  }
  const std::string name = file.at("general.architecture").text();
  std::string known;
  for (const GgufArchitecture& architecture : kArchitectures) {
    if (name == architecture.name) return architecture;
    known += (known.empty() ? "" : ", ") + std::string(architecture.name);
  }
  fail(fmt::format("general.architecture: '{}' is not supported; there are {}", name, known));
  std::abort();
}

checkpoints::ModelWeights gguf_weights(const Gguf& file) {
  const GgufArchitecture& architecture = gguf_architecture(file);
  const std::string heads_key = fmt::format("{}.attention.head_count", architecture.name);
  Heads heads{whole(file, heads_key, 1), 1};
  heads.key = whole(file, heads_key + "_kv", heads.query);
  constexpr int64_t kMost = 1 << 20;
  if (heads.query < 1 || heads.key < 1 || heads.query > kMost || heads.key > kMost)
    throw std::runtime_error(fmt::format("{}: {}: found {} and {}_kv {}, expected positive numbers up to {}",
                                         file.path().string(), heads_key, heads.query, heads_key, heads.key, kMost));
  const auto shared = std::make_shared<const Gguf>(file);  // keeps the mapping
  std::vector<checkpoints::MadeTensor> made;
  for (const GgufTensor& tensor : shared->tensors()) {
    if (tensor.name == kRopeFactors) continue;
    const auto fail = [&](const std::string& what) {
      throw std::runtime_error(fmt::format("{}: tensor '{}' {}", file.path().string(), tensor.name, what));
    };
    const auto target = target_of(architecture, tensor.name);
    if (!target) fail(fmt::format("is none of architecture {}'s", architecture.name));
    if (!tensor.type->to_float)
      fail(fmt::format("is stored as {}, which is not read; there are {}", tensor.type->name,
                       checkpoints::readable_block_types()));
    if (!fits(target->layout, tensor.shape, heads)) {
      fail(fmt::format("has shape [{}], which does not divide into {} heads of q and {} of k",
                       fmt::join(tensor.shape, ", "), heads.query, heads.key));
    }
    checkpoints::TensorView view{target->name, checkpoints::DType::F32, tensor.shape, nullptr};
    const bool turned = target->layout == Layout::transposed && tensor.shape.size() == 2;
    if (turned) std::reverse(view.shape.begin(), view.shape.end());
    const Layout layout = target->layout == Layout::transposed && !turned ? Layout::plain : target->layout;
    const double shift = view.name.ends_with("norm.weight") ? architecture.norm_shift : 0;
    made.push_back({view, [shared, &tensor, layout, heads, shift](void* to) {
                      auto* out = static_cast<float*>(to);
                      const int64_t count = tensor.numel();
                      if (layout == Layout::plain) {
                        shared->read(tensor, out);
                      } else {
                        std::vector<float> stored(count);
                        shared->read(tensor, stored.data());
                        rearrange(layout, tensor.shape, heads, stored.data(), out);
                      }
                      if (shift == 0) return;
                      for (int64_t i = 0; i < count; ++i) out[i] -= static_cast<float>(shift);
                    }});
  }
  if (made.empty())
    throw std::runtime_error(fmt::format("{}: has no tensors: it is a vocabulary or metadata alone, expected a model",
                                         file.path().string()));
  return checkpoints::ModelWeights::made(file.path(), std::move(made));
}

std::vector<std::pair<std::string, std::string>> gguf_folder_files(const std::filesystem::path& path) {
  const Gguf file = Gguf::open(path);
  nlohmann::ordered_json config = gguf_config(file);
  config["dtype"] = "float32";
  nlohmann::ordered_json generation{{"_from_model_config", true}};
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"})
    if (!config.at(key).is_null()) generation[key] = config.at(key);
  std::vector<std::pair<std::string, std::string>> files = {{"config.json", config.dump(2) + "\n"},
                                                            {"generation_config.json", generation.dump(2) + "\n"}};
  if (!data::has_gguf_tokenizer(file)) return files;
  data::GgufTokenizer tokenizer = data::gguf_tokenizer(file);
  files.emplace_back("tokenizer.json", std::move(tokenizer.json));
  files.emplace_back("tokenizer_config.json", std::move(tokenizer.config));
  if (tokenizer.chat_template) files.emplace_back("chat_template.jinja", *tokenizer.chat_template);
  return files;
}

}  // namespace cairn
