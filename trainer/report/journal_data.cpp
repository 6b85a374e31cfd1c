#include "trainer/report/journal_data.h"

#include <algorithm>
#include <fstream>
#include <set>

#include "checkpoints/journal.h"

namespace cairn::report {
namespace {

using Json = nlohmann::ordered_json;

// Numbers that are no curve: they are the axis, or make one.
const std::set<std::string> kNoCurve = {"step", "tokens", "seconds", "ranks", "crc"};

class Reader {
 public:
  explicit Reader(JournalData& data) : data_(data) {}

  void line(const Json& line) {
    const auto step = line.at("step").get<int64_t>();
    for (const Json& event : line.value("events", Json::array())) add_event(step, event);
    if (!line.contains("loss")) return;
    const int64_t tokens = line.value("tokens", int64_t{-1});
    const double seconds = number(line, "seconds");
    data_.steps.push_back(step);
    data_.tokens.push_back(tokens);
    if (seconds > 0) {
      data_.seconds += seconds;
      if (tokens > tokens_before_) value("tokens_per_s", step, tokens, (tokens - tokens_before_) / seconds);
    }
    tokens_before_ = std::max(tokens_before_, tokens);
    for (const auto& [key, entry] : line.items()) {
      // null stands for a number that JSON has no word for.
      if (kNoCurve.contains(key) || !(entry.is_number() || (entry.is_null() && key != "eval"))) continue;
      value(key, step, tokens, entry.is_number() ? entry.get<double>() : kMissing);
    }
    if (const auto eval = line.find("eval"); eval != line.end() && eval->is_object()) {
      for (const auto& [set, measures] : eval->items()) {
        if (!measures.is_object()) continue;
        for (const auto& [measure, entry] : measures.items())
          if (measure != "tokens" && (entry.is_number() || entry.is_null()))
            value("eval/" + set + "/" + measure, step, tokens, number(measures, measure));
      }
    }
  }

 private:
  static double number(const Json& object, const std::string& key) {
    const auto found = object.find(key);
    return found != object.end() && found->is_number() ? found->get<double>() : kMissing;
  }

  void value(const std::string& name, int64_t step, int64_t tokens, double value) {
    const auto [place, fresh] = place_.try_emplace(name, data_.columns.size());
    if (fresh) data_.columns.push_back({.name = name});
    Column& column = data_.columns[place->second];
    column.steps.push_back(step);
    column.tokens.push_back(tokens);
    column.values.push_back(value);
  }

  void add_event(int64_t step, const Json& event) {
    Json entry{{"step", step}};
    if (event.is_object()) {
      entry.update(event);
      entry["step"] = step;
    } else {
      entry["event"] = event.is_string() ? event : Json(event.dump());
    }
    if (!entry.contains("event") || !entry["event"].is_string()) entry["event"] = "event";
    data_.events.push_back(std::move(entry));
  }

  JournalData& data_;
  std::map<std::string, size_t> place_;
  int64_t tokens_before_ = 0;
};

}  // namespace

const Column* JournalData::find(const std::string& name) const {
  for (const Column& column : columns)
    if (column.name == name) return &column;
  return nullptr;
}

int64_t JournalData::tokens_at(int64_t step) const {
  if (step <= 0) return 0;
  const auto at = std::upper_bound(steps.begin(), steps.end(), step);
  if (at == steps.begin() || (at == steps.end() && steps.back() < step)) return -1;
  return tokens[at - steps.begin() - 1];
}

JournalData read_journal_data(const std::filesystem::path& path) {
  JournalData data;
  const checkpoints::JournalIndex index = checkpoints::index_journal(path);
  data.torn = index.torn;
  std::ifstream file(path, std::ios::binary);
  Reader reader(data);
  std::string text;
  for (const auto& line : index.lines) {
    text.resize(line.length);
    file.seekg(static_cast<std::streamoff>(line.offset));
    if (!file.read(text.data(), line.length))
      throw std::runtime_error(path.string() + ": cannot be read at offset " + std::to_string(line.offset) +
                               ": was the run resumed from an earlier step meanwhile? Make the report again");
    reader.line(Json::parse(text));
  }
  const auto loss =
      std::find_if(data.columns.begin(), data.columns.end(), [](const Column& c) { return c.name == "loss"; });
  if (loss != data.columns.end()) std::rotate(data.columns.begin(), loss, loss + 1);
  return data;
}

}  // namespace cairn::report
