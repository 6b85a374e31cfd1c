#include "trainer/data/show.h"

#include <fmt/format.h>

#include <charconv>
#include <stdexcept>

namespace cairn::data {

nlohmann::json show(const Dataset& data, int64_t step, bool with_text) {
  const Batch batch = data.batch(step);
  auto sequences = nlohmann::json::array();
  for (int64_t row = 0; row < batch.rows; ++row) {
    const auto& from = batch.provenance[row];
    const std::string& name = data.source(from.source).name;
    auto documents = nlohmann::json::array();
    for (const auto& piece : data.pieces(from, batch.context)) {
      documents.push_back(
          {{"id", fmt::format("{}:{}", name, piece.document)}, {"offset", piece.offset}, {"tokens", piece.tokens}});
    }
    const std::vector<int32_t> ids(batch.inputs.begin() + row * batch.context,
                                   batch.inputs.begin() + (row + 1) * batch.context);
    nlohmann::json sequence = {
        {"row", row}, {"source", name}, {"epoch", from.epoch}, {"window", from.window}, {"documents", documents},
        {"ids", ids},
        {"targets", std::vector<int32_t>(batch.targets.begin() + row * batch.context,
                                         batch.targets.begin() + (row + 1) * batch.context)}};
    if (with_text) sequence["text"] = data.text(ids);
    sequences.push_back(std::move(sequence));
  }
  return {{"step", step},
          {"stage", data.stage(step)},
          {"rows", batch.rows},
          {"context", batch.context},
          {"sequences", std::move(sequences)}};
}

std::string show_text(const nlohmann::json& shown) {
  std::string out =
      fmt::format("step {}: {} sequences of {} tokens, stage {}\n", shown["step"].get<int64_t>(),
                  shown["rows"].get<int64_t>(), shown["context"].get<int64_t>(), shown["stage"].get<int64_t>() + 1);
  for (const auto& sequence : shown["sequences"]) {
    out += fmt::format("row {}: {}, epoch {}, window {}\n", sequence["row"].get<int64_t>(),
                       sequence["source"].get<std::string>(), sequence["epoch"].get<int64_t>(),
                       sequence["window"].get<int64_t>());
    for (const auto& document : sequence["documents"]) {
      out += fmt::format("  document {}, tokens {} to {}\n", document["id"].get<std::string>(),
                         document["offset"].get<int64_t>(),
                         document["offset"].get<int64_t>() + document["tokens"].get<int64_t>());
    }
    if (sequence.contains("text")) {
      out += sequence["text"].get<std::string>() + "\n";
    } else {
      out += fmt::format("  ids {}\n", fmt::join(sequence["ids"].get<std::vector<int32_t>>(), " "));
    }
  }
  return out;
}

nlohmann::json where(const Dataset& data, const std::string& id, int64_t last_step) {
  const auto colon = id.rfind(':');
  const std::string digits = colon == id.npos ? id : id.substr(colon + 1);
  int64_t document = -1;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), document);
  if (error != std::errc() || end != digits.data() + digits.size()) {
    throw std::invalid_argument(fmt::format("'{}' is no document: expected SOURCE:NUMBER", id));
  }
  if (colon == id.npos && data.source_count() != 1) {
    std::vector<std::string> names;
    for (int32_t i = 0; i < data.source_count(); ++i) names.push_back(data.source(i).name);
    throw std::invalid_argument(
        fmt::format("'{}': there are several sources ({}); expected SOURCE:NUMBER", id, fmt::join(names, ", ")));
  }
  const int32_t source = colon == id.npos ? 0 : data.source_index(id.substr(0, colon));
  auto seen = nlohmann::json::array();
  for (const auto& at : data.where(source, document, last_step)) {
    seen.push_back({{"step", at.step},
                    {"row", at.row},
                    {"epoch", at.epoch},
                    {"window", at.window},
                    {"offset", at.offset},
                    {"tokens", at.tokens}});
  }
  const std::string& name = data.source(source).name;
  return {{"id", fmt::format("{}:{}", name, document)},
          {"source", name},
          {"document", document},
          {"tokens", data.document_ids(source, document).size()},
          {"seen", std::move(seen)}};
}

}  // namespace cairn::data
