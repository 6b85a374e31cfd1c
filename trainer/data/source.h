// What a run reads: the options of `data:` as plain structs. The YAML keys are the fields' names.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace cairn::data {

// One entry of data.train or data.validation. Exactly one of text, jsonl, shards is set.
struct SourceOptions {
  std::string name;       // default: derived from the path (default_name); part of the data order, see sampler.h
  std::string text;       // a file, a folder (its .txt, .txt.gz, .txt.zst files, recursively), a glob (`*` inside a
                          // folder, `**` across folders), or the known name "foldoc"
  std::string separator;  // splits a text file into documents; unset: "<|endoftext|>", else a file is one document
  std::string jsonl;      // likewise, of files with one JSON object a line (.jsonl, .gz, .zst)
  std::string field = "text";      // the string of a line that is the document
  std::string prompt, completion;  // instead of `field`: an example, as templates over a line's fields (template.h);
                                   // the completion alone is predicted
  std::string
      shards;  // Cairn shards (a folder with index.json, or a folder of such folders), .npy, Megatron .bin/.idx (the
               // prefix or either file), headerless memmaps as OLMo's (dtype set); or a glob of one of these
  std::string dtype;    // of a headerless memmap: uint8, uint16, uint32, int32, int64
  double weight = 1.0;  // share of the draws, after division by the sum over the sources
};

struct DataOptions {
  std::vector<SourceOptions> train;
  std::vector<SourceOptions> validation;  // named sets, held out by the user
  double validation_fraction = 0.0;       // share of the documents of `train` held out, by hash of the document
  int64_t context = 256;                  // T: tokens of a sequence
  bool mask_documents = false;            // no attention, no target, no position across documents
  bool none = false;                      // the run reads no data: `train` is empty
  bool examples = false;                  // rows of whole documents, packed (example_rows.h), instead of windows
  std::string overlong = "truncate";      // examples longer than a row: truncate (their ends are lost), drop, error
  std::string cache;                      // folder of tokenised sources; "" = ${XDG_CACHE_HOME:-~/.cache}/cairn
  int threads = 0;                        // for tokenising; 0 = all. Results do not depend on it
};

// A stage of a run. The last stage may have steps <= 0: it has no end.
struct StageData {
  DataOptions data;
  int64_t batch = 1;  // sequences a step
  int64_t steps = 0;
};

// What tokenising and scanning report, a few times a second, from one thread at a time.
struct Progress {
  std::string source;
  std::string phase;  // "hash", "tokenize", "scan"
  int64_t bytes = 0, total_bytes = 0, documents = 0, tokens = 0;
};
using ProgressCallback = std::function<void(const Progress&)>;

// The name that a source without one gets: the last part of its path without its endings ("corpora/web.jsonl.zst" ->
// "web").
std::string default_name(const SourceOptions& source);

inline bool has_examples(const SourceOptions& source) { return !source.prompt.empty() || !source.completion.empty(); }

// Throws std::invalid_argument unless exactly one of text, jsonl, shards is set, and the rest fits it.
void check(const SourceOptions& source);

}  // namespace cairn::data
