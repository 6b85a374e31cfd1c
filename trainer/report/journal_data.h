// What the journal of a run says, as columns.
#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "trainer/report/curve.h"

namespace cairn::report {

struct Column {
  std::string name;                    // the journal's key; eval/SET/nll, eval/SET/bits_per_byte
  std::vector<int64_t> steps, tokens;  // where it was written
  std::vector<double> values;          // NaN: null in the journal
};

struct JournalData {
  std::vector<int64_t> steps, tokens;          // of all lines that carry a loss
  std::vector<Column> columns;                 // loss first, then in the order in which they were first seen
  std::vector<nlohmann::ordered_json> events;  // {"step", "event", ...} as the journal has them
  double seconds = 0;                          // of all steps
  bool torn = false;                           // the last line was

  const Column* find(const std::string& name) const;
  // Tokens seen by the end of step n; nothing known: -1.
  int64_t tokens_at(int64_t step) const;
};

// Lines are read one at a time: a journal of 100,000 lines takes about a second. A missing file gives an empty result.
// Throws std::runtime_error naming file, line and offset where a line is damaged.
JournalData read_journal_data(const std::filesystem::path& path);

}  // namespace cairn::report
