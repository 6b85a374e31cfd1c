#include "trainer/report/samples.h"

#include <fmt/format.h>

#include <fstream>
#include <map>

#include "trainer/report/curve.h"

namespace cairn::report {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMostSamples = 120;

// Null where the line is none. Bytes that are no UTF-8 are replaced first: the parser would refuse the line.
Json sample_of(const std::string& line) {
  const std::string valid = Json::parse(Json(line).dump(-1, ' ', false, Json::error_handler_t::replace));
  const Json sample = Json::parse(valid, nullptr, false);
  if (!sample.is_object() || !sample.value("step", Json()).is_number_integer() ||
      !sample.value("text", Json()).is_string())
    return nullptr;
  const Json prompt = sample.value("prompt", Json());
  return {{"step", sample["step"]}, {"prompt", prompt.is_string() ? prompt : Json("")}, {"text", sample["text"]}};
}

}  // namespace

Json read_samples(const std::filesystem::path& file, int64_t last, std::vector<std::string>& notes) {
  std::map<std::pair<int64_t, std::string>, Json> kept;
  std::ifstream in(file, std::ios::binary);
  size_t number = 0, bad = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    const Json sample = sample_of(line);
    if (sample.is_null()) {
      if (!bad++) notes.push_back(fmt::format("samples.jsonl: line {} is no sample and is left out.", number));
      continue;
    }
    const auto step = sample["step"].get<int64_t>();
    if (step <= last) kept[{step, sample["prompt"].get<std::string>()}] = sample;
  }
  std::vector<const Json*> all;
  for (const auto& [key, sample] : kept) all.push_back(&sample);
  size_t every = 1;
  Json out = Json::array();
  for (size_t i : thin(all.size(), kMostSamples, &every)) out.push_back(*all[i]);
  if (every > 1) notes.push_back(fmt::format("Of {} samples one in {} is on the page.", all.size(), every));
  return out;
}

}  // namespace cairn::report
