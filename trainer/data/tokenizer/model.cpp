#include "trainer/data/tokenizer/model.h"

namespace cairn::data {

void Model::add_token(const std::string& token, int64_t id, const std::string& where) {
  if (id < 0 || id > 100'000'000)
    throw std::runtime_error(
        fmt::format("{}: token '{}' has the id {}, expected one from 0 to 100 million", where, token, id));
  if (static_cast<size_t>(id) >= tokens_.size()) {
    tokens_.resize(id + 1);
    has_.resize(id + 1, 0);
  }
  if (has_[id])
    throw std::runtime_error(fmt::format("{}: tokens '{}' and '{}' share the id {}", where, tokens_[id], token, id));
  tokens_[id] = token;
  has_[id] = 1;
}

void Model::finish_vocab() {
  ids_.reserve(tokens_.size() * 2);
  for (size_t id = 0; id < tokens_.size(); ++id)
    if (has_[id]) ids_[tokens_[id]] = static_cast<int32_t>(id);
}

void Model::read_vocab(const Json& vocab, const std::string& where) {
  if (!vocab.is_object()) throw std::runtime_error(where + ": 'vocab' is not an object {token: id}");
  for (auto at = vocab.begin(); at != vocab.end(); ++at) {
    if (!at.value().is_number_integer())
      throw std::runtime_error(
          fmt::format("{}: the id of token '{}' is {}, expected a whole number", where, at.key(), at.value().dump()));
    add_token(at.key(), at.value().get<int64_t>(), where);
  }
  finish_vocab();
}

namespace {

// Files of old had no type: what they hold tells.
std::string model_type(const Json& component) {
  if (!component.is_object())
    throw std::runtime_error("model: expected an object, found " + component.dump().substr(0, 40));
  if (component.contains("type")) return component_type(component, "model");
  if (component.contains("merges")) return "BPE";
  if (component.contains("vocab") && component["vocab"].is_array()) return "Unigram";
  if (component.contains("continuing_subword_prefix")) return "WordPiece";
  return "WordLevel";
}

}  // namespace

bool model_reads_bytes(const Json& component) {
  const auto given = [&](const char* key) {
    const auto at = component.find(key);
    return at != component.end() && !at->is_null() && !(at->is_string() && at->get<std::string>().empty()) &&
           !(at->is_boolean() && !at->get<bool>());
  };
  return model_type(component) == "BPE" && !given("continuing_subword_prefix") && !given("end_of_word_suffix") &&
         !given("byte_fallback");
}

std::unique_ptr<Model> make_model(const Json& component, bool byte_level) {
  const std::string type = model_type(component);
  if (type == "BPE") return make_bpe(component, byte_level);
  if (type == "Unigram") return make_unigram(component);
  if (type == "WordLevel") return make_word_level(component);
  if (type == "WordPiece") return make_word_piece(component);
  refuse_component("model", type);
}

}  // namespace cairn::data
