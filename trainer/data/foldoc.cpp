#include "trainer/data/foldoc.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <map>
#include <stdexcept>

#include "trainer/data/byte_stream.h"
#include "trainer/data/files.h"

namespace cairn::data {

const char* const kFoldocFolder = "/usr/share/dictd";
const int kFoldocCleaning = 1;

namespace {
// Numbers of a dictd index are written in base 64, most significant digit first.
int64_t base64_number(std::string_view digits, const std::string& path, int64_t line) {
  static constexpr std::string_view alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  int64_t number = 0;
  for (const char c : digits) {
    const auto value = alphabet.find(c);
    if (value == alphabet.npos)
      throw std::runtime_error(fmt::format("{}: line {}: '{}' is no number", path, line, digits));
    number = number * 64 + static_cast<int64_t>(value);
  }
  return number;
}

std::string inflate_whole(const std::string& path) {
  const auto stream = open_stream(path);
  std::string text;
  std::vector<char> buffer(1 << 20);
  while (const size_t got = stream->read(buffer.data(), buffer.size())) text.append(buffer.data(), got);
  return text;
}

bool is_date(std::string_view text) {  // (2014-10-25), (1995-04), (21 Sep 93)
  if (text.size() < 6 || text.size() > 14 || text.front() != '(' || text.back() != ')') return false;
  return std::isdigit(static_cast<unsigned char>(text[1])) &&
         std::all_of(text.begin() + 1, text.end() - 1,
                     [](unsigned char c) { return std::isalnum(c) || c == '-' || c == ' '; });
}

// {shell} -> shell; {Manqala (http://...)} -> Manqala; {(http://...)} -> nothing.
std::string without_braces(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '{') {
      const auto close = text.find('}', i);
      auto inside = close == text.npos ? text.substr(i + 1) : text.substr(i + 1, close - i - 1);
      for (const std::string_view link : {"(http", "(ftp", "(mailto", "(news", "(gopher"}) {
        inside = inside.substr(0, inside.find(link));
      }
      if (inside.ends_with(".html)")) inside = inside.substr(0, inside.rfind('('));
      while (inside.ends_with(' ')) inside.remove_suffix(1);
      out += inside;
      if (close == text.npos) break;
      i = close;
    } else if (text[i] != '}') {
      out += text[i];
    }
  }
  return out;
}

// "<programming, humour> A daft way" -> "A daft way"; "1. <tool> A daft way" -> "1. A daft way".
std::string without_subject(std::string paragraph) {
  size_t mark = 0;
  while (mark < paragraph.size() && std::isdigit(static_cast<unsigned char>(paragraph[mark]))) ++mark;
  if (mark > 0 && paragraph.compare(mark, 2, ". ") == 0) mark += 2;
  if (mark >= paragraph.size() || paragraph[mark] != '<') return paragraph;
  const auto close = paragraph.find_first_of(">@/", mark);  // not an address
  if (close == paragraph.npos || paragraph[close] != '>') return paragraph;
  return paragraph.erase(mark, std::min(close + 2, paragraph.size()) - mark);
}

std::vector<std::string_view> split_lines(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const auto end = std::min(text.find('\n'), text.size());
    lines.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

// A paragraph is lines at the text's indent, joined, or deeper ones (verse, code, tables), kept as they are.
std::vector<std::string> paragraphs(const std::vector<std::string_view>& lines) {
  std::vector<std::string> out;
  bool open = false, deep_before = false;
  for (auto line : lines) {
    while (line.ends_with(' ') || line.ends_with('\t') || line.ends_with('\r')) line.remove_suffix(1);
    const auto indent = line.find_first_not_of(" \t");
    if (indent == line.npos) {
      open = false;
      continue;
    }
    const bool deep = indent > 3 || line.find('\t') < indent;
    const auto text = line.substr(deep ? std::min<size_t>(indent, 3) : indent);
    if (!open) {
      out.emplace_back(text);
    } else {
      out.back() += deep || deep_before ? '\n' : ' ';
      out.back() += text;
    }
    open = true;
    deep_before = deep;
  }
  return out;
}
}  // namespace

std::vector<std::string> foldoc_files(const std::string& folder) {
  std::vector<std::string> files = {folder + "/foldoc.index", folder + "/foldoc.dict.dz"};
  for (const auto& file : files) {
    if (!std::filesystem::exists(file)) {
      throw std::runtime_error(fmt::format(
          "data: text: foldoc: {} is not there; install it with `apt-get install dict-foldoc`, or name another text",
          file));
    }
  }
  return files;
}

std::string clean_foldoc(std::string_view entry) {
  auto lines = split_lines(entry);
  size_t body = 0;
  while (body < lines.size() && (lines[body].empty() || lines[body].front() != ' '))
    ++body;  // headwords, an empty line
  std::string headword;
  for (size_t i = 0; i < body && headword.empty(); ++i) headword = lines[i].substr(0, lines[i].find("%%%"));
  lines.erase(lines.begin(), lines.begin() + static_cast<std::ptrdiff_t>(body));

  std::string text;
  for (auto& raw : paragraphs(lines)) {
    const bool first = text.empty();
    const std::string paragraph = without_subject(raw);
    if (is_date(paragraph) || (paragraph.starts_with("[{") && paragraph.ends_with("}]"))) continue;
    std::string clean = without_braces(paragraph);
    const bool word =
        std::any_of(clean.begin(), clean.end(), [](unsigned char c) { return std::isalnum(c) || c >= 128; });
    if (!word) continue;  // was a link alone
    if (!first) text += "\n\n";
    text += clean;
  }
  if (headword.empty() || text.empty()) return {};
  return headword + "\n\n" + text + "\n";
}

std::vector<std::string> read_foldoc(const std::string& folder) {
  const auto files = foldoc_files(folder);
  const std::string index = read_whole(files[0]), dictionary = inflate_whole(files[1]);
  std::map<int64_t, int64_t> entries;  // offset -> length; several headwords share an entry
  int64_t number = 0;
  for (const auto line : split_lines(index)) {
    ++number;
    const auto first = line.find('\t'), second = line.rfind('\t');
    if (first == line.npos || second == first) {
      throw std::runtime_error(
          fmt::format("{}: line {}: expected headword, offset, length between tabs", files[0], number));
    }
    if (line.starts_with("00")) continue;
    const int64_t offset = base64_number(line.substr(first + 1, second - first - 1), files[0], number);
    const int64_t length = base64_number(line.substr(second + 1), files[0], number);
    if (offset + length > static_cast<int64_t>(dictionary.size())) {
      throw std::runtime_error(fmt::format("{}: line {}: the entry ends at byte {}, but {} holds {} bytes", files[0],
                                           number, offset + length, files[1], dictionary.size()));
    }
    entries[offset] = length;
  }
  std::vector<std::string> documents;
  for (const auto& [offset, length] : entries) {
    auto text = clean_foldoc(std::string_view(dictionary).substr(offset, length));
    if (!text.empty()) documents.push_back(std::move(text));
  }
  return documents;
}

}  // namespace cairn::data
