#include <fmt/format.h>

#include <iostream>
#include <nlohmann/json.hpp>

#include "trainer/data/tokenizer/tokenizer.h"
#include "trainer/data/tokenizer/utf8.h"

namespace cairn::data {
namespace {

using Json = nlohmann::json;

Json parse_line(const std::string& line, const std::string& origin, int64_t number, const char* expected) {
  try {
    return Json::parse(replace_invalid_utf8(line));
  } catch (const Json::exception& error) {
    throw std::runtime_error(fmt::format("{}: line {}: expected {}: {}", origin, number, expected, error.what()));
  }
}

}  // namespace

void encode_json_lines(const Tokenizer& tokenizer, std::istream& in, std::ostream& out, bool add_special_tokens,
                       const std::string& origin) {
  std::string line, answer;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    const Json text = parse_line(line, origin, number, "one JSON string");
    if (!text.is_string())
      throw std::runtime_error(
          fmt::format("{}: line {}: expected one JSON string, found {}", origin, number, line.substr(0, 80)));
    answer.assign(1, '[');
    for (const int32_t id : tokenizer.encode(text.get_ref<const std::string&>(), add_special_tokens)) {
      if (answer.size() > 1) answer += ", ";
      answer += fmt::format_int(id).c_str();
    }
    answer += "]\n";
    out << answer;
  }
}

void decode_json_lines(const Tokenizer& tokenizer, std::istream& in, std::ostream& out, bool skip_special_tokens,
                       const std::string& origin) {
  std::string line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    const Json list = parse_line(line, origin, number, "one JSON array of ids");
    std::vector<int32_t> ids;
    try {
      if (!list.is_array()) throw std::invalid_argument("");
      for (const Json& id : list) {
        if (!id.is_number_integer()) throw std::invalid_argument("");
        const double value = id.get<double>();  // no wrapping around
        if (value < 0 || value >= tokenizer.vocab_size())
          throw std::runtime_error(
              fmt::format("{}: line {}: {} is no id below {}", origin, number, id.dump(), tokenizer.vocab_size()));
        ids.push_back(id.get<int32_t>());
      }
    } catch (const std::invalid_argument&) {
      throw std::runtime_error(
          fmt::format("{}: line {}: expected one JSON array of ids, found {}", origin, number, line.substr(0, 80)));
    }
    out << Json(tokenizer.decode(ids, skip_special_tokens)).dump() << "\n";
  }
}

}  // namespace cairn::data
