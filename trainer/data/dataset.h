// The data of a run, opened once at start; then every batch is a function of (seed, step) and nothing else.
//
// Packing: the tokens of a source are its documents one after another, each closed by EOS. Window i of a source is the
// tokens [i T, i T + T], T inputs and the successors as targets; what is left at the end (less than a window) is not
// used. Order: see sampler.h. A change of `context` between stages changes the windows, so a source that meets it
// begins its next epoch there; Provenance records epoch and window. Threads: all const members may be called
// concurrently.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "trainer/data/encoding.h"
#include "trainer/data/source.h"

namespace cairn::data {

// Where the first input of a row comes from.
struct Provenance {
  int32_t source = 0;    // index for Dataset::source
  int64_t epoch = 0;     // -1 in validation
  int64_t window = 0;    // of the epoch's permutation: the window's own number in the source, not the draw's
  int64_t document = 0;  // index in the source, held-out documents counted too
  int64_t offset = 0;    // tokens into that document
};

struct Batch {  // rows are sequences
  int64_t rows = 0, context = 0;
  std::vector<int32_t> inputs;   // [rows * context]
  std::vector<int32_t> targets;  // [rows * context]; -1: not predicted (across documents with mask_documents, padding)
  std::vector<int32_t> positions;  // [rows * context]; restart at documents with mask_documents
  std::vector<int32_t>
      segments;  // [rows * context]; number of the document inside the row, all 0 without mask_documents
  std::vector<Provenance> provenance;  // [rows]
  int64_t target_count() const;
};

struct SourceInfo {
  std::string name, path;
  uint64_t digest =
      0;  // of the token stream and its document boundaries: the same data gives the same digest, whether it
          // came from text, from the cache or from shards. Another digest than the recorded one stops a replay
  int64_t tokens = 0, documents = 0;
  int64_t train_tokens = 0, train_documents = 0;  // the rest is held out by validation_fraction (token_view.h)
  std::string files_digest;                       // of the raw files (text, jsonl, foldoc); "" for shards
  int64_t overlong = 0, silent = 0;               // of examples (example_rows.h)
  bool validation = false;                        // a named validation set: no step reads it
};

// A row that read a part of a document.
struct Sighting {
  int64_t step = 0, row = 0, epoch = 0, window = 0;
  int64_t offset = 0, tokens = 0;  // which part of the document: [offset, offset + tokens) are inputs of the row
};

class Dataset {
 public:
  // Opens (and, the first time, tokenises into the cache) every source of every stage. Throws std::runtime_error for
  // bad data with file and offset, std::invalid_argument for options that make no sense.
  Dataset(std::vector<StageData> stages, std::shared_ptr<const Tokenizer> tokenizer, uint64_t seed,
          const ProgressCallback& progress = {});
  Dataset(std::vector<StageData> stages, Encoding encoding, uint64_t seed, const ProgressCallback& progress = {});
  ~Dataset();
  Dataset(Dataset&&) noexcept;

  // ---- training; steps count from 1: step n turns state n-1 into state n ----
  int64_t steps() const;                      // of all stages; -1: the last one has no end
  int64_t stage(int64_t step) const;          // index of the stage that holds the step
  int64_t rows(int64_t step) const;           // the stage's batch
  int64_t context(int64_t step) const;        // the stage's context
  int64_t tokens_before(int64_t step) const;  // inputs that the steps 1 .. step-1 read
  Batch batch(int64_t step) const;
  Batch batch_rows(int64_t step, int64_t first, int64_t count) const;  // rows [first, first + count) of batch(step)
  // Steps until `epochs` passes: draws = epochs * windows of all sources of the stage that holds step 1, over the
  // batch.
  int64_t steps_of_epochs(double epochs) const;

  // ---- validation: sets held out by fraction first ("validation", or "validation/NAME" with several sources), then
  // the named ones ----
  const std::vector<std::string>& validation_names() const;
  // Sequences of a set at a context (0: that of the first stage); all its tokens, the last sequence padded (target -1).
  int64_t validation_sequences(const std::string& set, int64_t context = 0) const;
  // Rows [first, first + count) of the set, in an order that depends on the set's name alone.
  Batch validation_rows(const std::string& set, int64_t first, int64_t count, int64_t context = 0) const;

  // ---- sources ----
  int32_t source_count() const;
  const SourceInfo& source(int32_t index) const;
  int32_t source_index(const std::string& name) const;  // throws std::invalid_argument naming the sources there are
  std::vector<int32_t> document_ids(int32_t source, int64_t document) const;
  std::string document_text(int32_t source, int64_t document) const;
  std::string text(
      const std::vector<int32_t>& ids) const;  // throws std::invalid_argument where the encoding cannot decode
  struct Piece {
    int64_t document, offset, tokens;
  };
  // The documents that a row of training reads, in order.
  std::vector<Piece> pieces(const Provenance& row, int64_t context) const;
  // The rows of the steps 1 .. last_step (of all steps with -1, where they end) that read a part of the document.
  std::vector<Sighting> where(int32_t source, int64_t document, int64_t last_step = -1) const;
  // Reads everything again and throws std::runtime_error naming what differs: the start trusts path, size and time of a
  // file, so a change that keeps all three is found here alone.
  void verify() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace cairn::data
