#include "trainer/data/tokenizer/post_processor.h"

namespace cairn::data {
namespace {

// TemplateProcessing's `single`: special tokens around one Sequence A.
Surround from_template(const Json& component, const std::string& here) {
  Surround out;
  const Json specials = field_or(component, "special_tokens", Json::object(), here);
  bool behind = false;
  for (const Json& part : field<Json>(component, "single", here)) {
    if (part.contains("Sequence")) {
      if (behind || part["Sequence"].value("id", "A") != "A")
        throw std::runtime_error(here + ": 'single' must hold Sequence A once");
      behind = true;
    } else if (part.contains("SpecialToken")) {
      const auto name = field<std::string>(part["SpecialToken"], "id", here);
      if (!specials.contains(name))
        throw std::runtime_error(here + ": no special token '" + name + "' in 'special_tokens'");
      auto& side = behind ? out.after : out.before;
      for (const auto id : field<std::vector<int32_t>>(specials[name], "ids", here)) side.push_back(id);
    } else {
      throw std::runtime_error(here + ": expected Sequence or SpecialToken, found " + part.dump());
    }
  }
  if (!behind) throw std::runtime_error(here + ": 'single' holds no Sequence");
  return out;
}

// BERT's and RoBERTa's: cls [text] sep, each given as [token, id].
int32_t pair_id(const Json& component, const char* key, const std::string& here) {
  const Json pair = field<Json>(component, key, here);
  if (!pair.is_array() || pair.size() != 2 || !pair[1].is_number_integer())
    throw std::runtime_error(fmt::format("{}: '{}' is {}, expected [token, id]", here, key, pair.dump()));
  return pair[1].get<int32_t>();
}

}  // namespace

Surround make_surround(const Json& component, const std::string& where) {
  if (component.is_null()) return {};
  const std::string type = component_type(component, where);
  const std::string here = where + " " + type;
  if (type == "ByteLevel") return {};  // it moves offsets alone
  if (type == "TemplateProcessing") return from_template(component, here);
  if (type == "RobertaProcessing" || type == "BertProcessing")
    return {{pair_id(component, "cls", here)}, {pair_id(component, "sep", here)}};
  if (type == "Sequence") {
    Surround out;
    const Json list = field<Json>(component, "processors", here);
    for (size_t i = 0; i < list.size(); ++i) {
      const Surround part = make_surround(list[i], fmt::format("{}[{}]", where, i));
      out.before.insert(out.before.begin(), part.before.begin(), part.before.end());
      out.after.insert(out.after.end(), part.after.begin(), part.after.end());
    }
    return out;
  }
  refuse_component(where, type);
}

}  // namespace cairn::data
