#include "trainer/data/source.h"

#include <fmt/format.h>

#include <cmath>
#include <stdexcept>

namespace cairn::data {

std::string default_name(const SourceOptions& source) {
  std::string path = !source.text.empty() ? source.text : !source.jsonl.empty() ? source.jsonl : source.shards;
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  // Of a glob, the last part before the first wildcard's: data/web/*.jsonl is "web".
  if (const auto wild = path.find_first_of("*?["); wild != path.npos) {
    const auto slash = path.rfind('/', wild);
    path = slash == path.npos || slash == 0 ? path : path.substr(0, slash);
  }
  path = path.substr(path.rfind('/') + 1);
  for (bool again = true; again;) {
    again = false;
    for (const std::string ending : {".gz", ".zst", ".txt", ".jsonl", ".npy", ".bin", ".idx"}) {
      if (path.size() > ending.size() && path.ends_with(ending)) {
        path.erase(path.size() - ending.size());
        again = true;
      }
    }
  }
  return path;
}

void check(const SourceOptions& source) {
  const int given = !source.text.empty() + !source.jsonl.empty() + !source.shards.empty();
  const std::string name = source.name.empty() && given > 0 ? default_name(source) : source.name;
  const auto fail = [&](const std::string& what) {
    throw std::invalid_argument(fmt::format("data source '{}': {}", name, what));
  };
  if (given != 1)
    fail(fmt::format("expected exactly one of text, jsonl, shards; found {}", given == 0 ? "none" : "several"));
  if (!(source.weight > 0) || !std::isfinite(source.weight))
    fail(fmt::format("weight: {} is not positive", source.weight));
  if (!source.dtype.empty() && source.shards.empty()) fail("dtype is for shards only");
  if (!source.separator.empty() && source.text.empty()) fail("separator is for text only");
  if (has_examples(source) && source.jsonl.empty()) fail("prompt and completion are for jsonl only");
  if (has_examples(source) && source.completion.empty())
    fail("prompt: expected a completion beside it, which is what is learned");
  if (source.field.empty()) fail("field: is empty; expected the name of a string of every line");
}

}  // namespace cairn::data
