// The records of data files: one JSON object a line, or one array of objects; told apart by the first character, not by
// the name. Compressed files (.gz, .zst) are read too.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace cairn::rl {

using Json = nlohmann::ordered_json;

class Records {
 public:
  // `pattern`: a file, a folder (.jsonl, .json, also compressed) or a glob, in byte order of the paths. Throws
  // std::runtime_error naming the file, and the line, of what cannot be read; where there is no record at all.
  explicit Records(const std::string& pattern);

  int64_t size() const { return static_cast<int64_t>(records_.size()); }
  // The object. Throws std::runtime_error "FILE: line N: not JSON: ..." or "...: expected a JSON object, found ...".
  Json at(int64_t index) const;
  const std::string& file(int64_t index) const { return files_[records_[index].file].path; }
  int64_t line(int64_t index) const { return records_[index].line; }  // from 1, of its first character
  std::string where(int64_t index) const;                             // "FILE: line N"
  std::string_view text(int64_t index) const;

 private:
  struct File {
    std::string path, text;
  };
  struct Record {
    size_t file, begin, end;
    int64_t line;
  };
  void split_lines(size_t file);
  void split_array(size_t file, size_t begin, int64_t line);

  std::vector<File> files_;
  std::vector<Record> records_;
};

}  // namespace cairn::rl
