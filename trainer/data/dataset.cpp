#include "trainer/data/dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "trainer/data/cache.h"
#include "trainer/data/documents.h"
#include "trainer/data/example_rows.h"
#include "trainer/data/packing.h"
#include "trainer/data/permutation.h"
#include "trainer/data/sampler.h"
#include "trainer/data/token_view.h"
#include "trainer/data/tokenizer/tokenizer.h"

namespace cairn::data {
namespace {
// A source by its name; the same name in several stages is the same source.
struct Source {
  SourceOptions options;
  OpenSource opened;
  std::unique_ptr<TokenView> train;
  std::map<int64_t, ExampleRows> examples;  // by context, where rows are whole documents
  SourceInfo info;
};

struct ValidationSet {
  std::string name;
  SourceOptions options;
  int32_t source;  // index; named sets come after the sources of training
  std::unique_ptr<TokenView> view;
  std::map<int64_t, ExampleRows> examples;
};

const std::string& path_of(const SourceOptions& source) {
  return !source.text.empty() ? source.text : !source.jsonl.empty() ? source.jsonl : source.shards;
}

bool same_data(const SourceOptions& a, const SourceOptions& b) {
  return a.text == b.text && a.separator == b.separator && a.jsonl == b.jsonl && a.field == b.field &&
         a.prompt == b.prompt && a.completion == b.completion && a.shards == b.shards && a.dtype == b.dtype;
}

void check_stage(const StageData& stage, const StageData& first, size_t number) {
  const auto fail = [&](const std::string& what) {
    throw std::invalid_argument(fmt::format("data (stage {}): {}", number, what));
  };
  const auto& data = stage.data;
  if (data.train.empty() != data.none)
    fail(data.none ? "train names a source of a run without data" : "train names no source");
  if (data.examples != first.data.examples) fail("examples and windows of text do not go together");
  if (data.context < 1) fail(fmt::format("context: {} is not positive", data.context));
  if (stage.batch < 1) fail(fmt::format("batch: {} is not positive", stage.batch));
  if (!(data.validation_fraction >= 0) || data.validation_fraction >= 1) {
    fail(fmt::format("validation_fraction: {} is not in [0, 1)", data.validation_fraction));
  }
  if (data.validation_fraction != first.data.validation_fraction) {
    fail(fmt::format(
        "validation_fraction: {}, but stage 1 has {}; it must not change inside a run, or held-out documents would be "
        "trained on",
        data.validation_fraction, first.data.validation_fraction));
  }
}
}  // namespace

struct Dataset::Impl {
  std::vector<StageData> stages;
  Encoding encoding;
  uint64_t seed = 0;
  std::vector<std::unique_ptr<Source>> sources;
  std::vector<ValidationSet> sets;
  std::vector<std::string> set_names;
  std::unique_ptr<Sampler> sampler;

  Source& add_source(SourceOptions options, const DataOptions& data, const std::string& name,
                     const ProgressCallback& progress) {
    auto source = std::make_unique<Source>();
    source->opened = open_source(options, encoding, data.cache, data.threads, progress);
    source->options = std::move(options);
    const auto& tokens = *source->opened.tokens;
    tokens.check_vocabulary(encoding.vocab_size);
    source->info = {.name = name,
                    .path = path_of(source->options),
                    .digest = tokens.digest(),
                    .tokens = tokens.tokens(),
                    .documents = tokens.documents(),
                    .files_digest = source->opened.files_digest};
    sources.push_back(std::move(source));
    return *sources.back();
  }

  // The source's index, opened where it is new.
  int32_t train_source(SourceOptions options, const DataOptions& data, const ProgressCallback& progress) {
    check(options);
    if (options.name.empty()) options.name = default_name(options);
    for (size_t i = 0; i < sources.size(); ++i) {
      if (sources[i]->options.name != options.name) continue;
      if (!same_data(sources[i]->options, options)) {
        throw std::invalid_argument(fmt::format("data source '{}' is {} and {}; give one of them another `name`",
                                                options.name, path_of(sources[i]->options), path_of(options)));
      }
      return static_cast<int32_t>(i);
    }
    const std::string name = options.name;
    auto& source = add_source(std::move(options), data, name, progress);
    source.train = std::make_unique<TokenView>(source.opened.tokens, Side::train, data.validation_fraction);
    source.info.train_tokens = source.train->tokens();
    source.info.train_documents = source.train->documents();
    return static_cast<int32_t>(sources.size() - 1);
  }

  int64_t windows(int32_t index, const DataOptions& data) {
    auto& source = *sources[index];
    if (data.examples) {
      const ExampleRows& rows =
          source.examples.try_emplace(data.context, *source.train, data.context, data.overlong, source.info.name)
              .first->second;
      source.info.overlong = rows.overlong(), source.info.silent = rows.silent();
      return rows.rows();
    }
    const int64_t windows = source.train->windows(data.context);
    if (windows > 0) return windows;
    const std::string part = data.validation_fraction > 0
                                 ? fmt::format(" for training (of {}, after validation_fraction: {})",
                                               source.info.tokens, data.validation_fraction)
                                 : "";
    throw std::runtime_error(
        fmt::format("data source '{}' ({}): {} tokens{} are shorter than one window: context {} needs {}; name more "
                    "text or a smaller context",
                    source.info.name, source.info.path, source.train->tokens(), part, data.context, data.context + 1));
  }

  void open_training(const ProgressCallback& progress) {
    if (stages[0].data.train.empty()) return;
    std::vector<SamplerStage> plan;
    for (const auto& stage : stages) {
      SamplerStage out{stage.steps, stage.batch, {}};
      for (const auto& options : stage.data.train) {
        const int32_t index = train_source(options, stage.data, progress);
        out.entries.push_back({index, options.weight, windows(index, stage.data), stage.data.context});
      }
      plan.push_back(std::move(out));
    }
    std::vector<std::string> names;
    for (const auto& source : sources) names.push_back(source->info.name);
    sampler = std::make_unique<Sampler>(seed, std::move(names), std::move(plan));
  }

  void add_set(ValidationSet set) {
    if (set.view->tokens() < 2) {
      throw std::runtime_error(fmt::format("validation set '{}' ({}): {} tokens; at least 2 are needed", set.name,
                                           sources[set.source]->info.path, set.view->tokens()));
    }
    if (examples()) {
      for (const auto& stage : stages)
        set.examples.try_emplace(stage.data.context, *set.view, stage.data.context, stage.data.overlong, set.name);
    }
    set_names.push_back(set.name);
    sets.push_back(std::move(set));
  }

  void open_held_out() {
    const double fraction = stages[0].data.validation_fraction;
    if (fraction <= 0) return;
    const size_t count = sources.size();
    for (size_t i = 0; i < count; ++i) {
      const auto& source = *sources[i];
      auto view = std::make_unique<TokenView>(source.opened.tokens, Side::held_out, fraction);
      if (view->documents() == 0) {
        throw std::runtime_error(
            fmt::format("data source '{}' ({}): validation_fraction: {} holds out none of its {} documents, nor two of "
                        "its {} tokens; use a larger fraction or more text, or name a validation set",
                        source.info.name, source.info.path, fraction, source.info.documents, source.info.tokens));
      }
      add_set(
          {count == 1 ? "validation" : "validation/" + source.info.name, {}, static_cast<int32_t>(i), std::move(view)});
    }
  }

  void open_validation(const ProgressCallback& progress) {
    for (const auto& stage : stages) {
      for (auto options : stage.data.validation) {
        check(options);
        if (options.name.empty()) options.name = default_name(options);
        const auto known =
            std::find_if(sets.begin(), sets.end(), [&](const auto& set) { return set.name == options.name; });
        if (known != sets.end()) {
          if (same_data(known->options, options) && &stage != &stages[0]) continue;
          throw std::invalid_argument(
              fmt::format("two validation sets are called '{}'; give one of them another `name`", options.name));
        }
        auto& source = add_source(options, stage.data, options.name, progress);
        source.info.validation = true;
        auto view = std::make_unique<TokenView>(source.opened.tokens, Side::all, 0);
        add_set({options.name, options, static_cast<int32_t>(sources.size() - 1), std::move(view)});
      }
    }
  }

  const ValidationSet& find_set(const std::string& name) const {
    for (const auto& set : sets) {
      if (set.name == name) return set;
    }
    throw std::invalid_argument(fmt::format("no validation set '{}'; there are: {}", name, fmt::join(set_names, ", ")));
  }

  // A run trains on examples in all its stages or in none.
  bool examples() const { return stages[0].data.examples; }
  const ExampleRows& examples_of(const std::string& name, int64_t context) const {
    const ValidationSet& set = find_set(name);
    const auto found = set.examples.find(context);
    if (found == set.examples.end())
      throw std::invalid_argument(
          fmt::format("validation set '{}': its examples are packed into rows of {} tokens, not {}", name,
                      set.examples.begin()->first, context));
    return found->second;
  }

  // Mask of the first stage with this context.
  bool mask_of(int64_t context) const {
    for (const auto& stage : stages) {
      if (stage.data.context == context) return stage.data.mask_documents;
    }
    return stages[0].data.mask_documents;
  }
};

namespace {
void check_rows(int64_t first, int64_t count, int64_t rows, const std::string& what) {
  if (first < 0 || count < 0 || first + count > rows) {
    throw std::invalid_argument(fmt::format("rows {} to {} of {}, which has {}", first, first + count, what, rows));
  }
}
}  // namespace

Dataset::Dataset(std::vector<StageData> stages, std::shared_ptr<const Tokenizer> tokenizer, uint64_t seed,
                 const ProgressCallback& progress)
    : Dataset(std::move(stages), encoding_of(std::move(tokenizer)), seed, progress) {}

Dataset::Dataset(std::vector<StageData> stages, Encoding encoding, uint64_t seed, const ProgressCallback& progress)
    : impl_(std::make_unique<Impl>()) {
  if (stages.empty()) throw std::invalid_argument("data: a run needs at least one stage");
  for (size_t i = 0; i < stages.size(); ++i) check_stage(stages[i], stages[0], i + 1);
  impl_->stages = std::move(stages);
  impl_->encoding = std::move(encoding);
  impl_->seed = seed;
  impl_->open_training(progress);
  impl_->open_held_out();
  impl_->open_validation(progress);
}
Dataset::~Dataset() = default;
Dataset::Dataset(Dataset&&) noexcept = default;

int64_t Dataset::steps() const { return impl_->sampler ? impl_->sampler->steps() : -1; }
int64_t Dataset::stage(int64_t step) const {
  if (impl_->sampler) return impl_->sampler->stage(step);
  size_t stage = 0;
  for (int64_t left = step; stage + 1 < impl_->stages.size() && left > impl_->stages[stage].steps; ++stage)
    left -= impl_->stages[stage].steps;
  return static_cast<int64_t>(stage);
}
int64_t Dataset::rows(int64_t step) const { return impl_->stages[stage(step)].batch; }
int64_t Dataset::context(int64_t step) const { return impl_->stages[stage(step)].data.context; }

int64_t Dataset::tokens_before(int64_t step) const {
  int64_t tokens = 0, left = step - 1;
  for (const auto& stage : impl_->stages) {
    const int64_t here = stage.steps > 0 ? std::min(left, stage.steps) : left;
    tokens += here * stage.batch * stage.data.context;
    left -= here;
  }
  return tokens;
}

int64_t Dataset::steps_of_epochs(double epochs) const {
  if (!impl_->sampler) throw std::invalid_argument("the run reads no data, which would make epochs");
  const auto& stage = impl_->sampler->settings(0);
  int64_t windows = 0;
  for (const auto& entry : stage.entries) windows += entry.windows;
  return std::max<int64_t>(
      1, static_cast<int64_t>(std::ceil(epochs * static_cast<double>(windows) / static_cast<double>(stage.batch))));
}

Batch Dataset::batch(int64_t step) const { return batch_rows(step, 0, rows(step)); }

Batch Dataset::batch_rows(int64_t step, int64_t first, int64_t count) const {
  const auto& stage = impl_->stages[this->stage(step)];
  if (!impl_->sampler)
    throw std::invalid_argument("the run reads no data: its steps sample what they learn from (RUN/rollouts)");
  check_rows(first, count, stage.batch, fmt::format("the batch of step {}", step));
  Batch batch = empty_batch(count, stage.data.context);
  for (int64_t row = 0; row < count; ++row) {
    const auto draw = impl_->sampler->at(step, first + row);
    const auto& source = *impl_->sources[draw.source];
    const Provenance from{draw.source, draw.epoch, draw.window, 0, 0};
    if (stage.data.examples) {
      fill_examples(batch, row, *source.train, source.examples.at(stage.data.context), draw.window, impl_->encoding,
                    from);
      continue;
    }
    fill_row(batch, row, *source.train, draw.window * stage.data.context, stage.data.mask_documents, impl_->encoding,
             from);
  }
  return batch;
}

const std::vector<std::string>& Dataset::validation_names() const { return impl_->set_names; }

int64_t Dataset::validation_sequences(const std::string& set, int64_t context) const {
  if (context <= 0) context = impl_->stages[0].data.context;
  if (impl_->examples()) return impl_->examples_of(set, context).rows();
  return (impl_->find_set(set).view->tokens() - 1 + context - 1) / context;
}

Batch Dataset::validation_rows(const std::string& name, int64_t first, int64_t count, int64_t context) const {
  if (context <= 0) context = impl_->stages[0].data.context;
  const auto& set = impl_->find_set(name);
  check_rows(first, count, validation_sequences(name, context), fmt::format("the validation set '{}'", name));
  Batch batch = empty_batch(count, context);
  if (impl_->examples()) {
    const ExampleRows& rows = impl_->examples_of(name, context);
    for (int64_t row = 0; row < count; ++row) {
      const int64_t index = Permutation(0, "validation " + name, 0, rows.rows())(first + row);
      fill_examples(batch, row, *set.view, rows, index, impl_->encoding, {set.source, -1, index, 0, 0});
    }
    return batch;
  }
  const int64_t whole = set.view->windows(context);
  for (int64_t row = 0; row < count; ++row) {
    // A fixed order that is not the text's, so that the first K rows are a sample of the set; the padded row is the
    // last.
    const int64_t window = first + row < whole ? Permutation(0, "validation " + name, 0, whole)(first + row) : whole;
    fill_row(batch, row, *set.view, window * context, impl_->mask_of(context), impl_->encoding,
             {set.source, -1, window, 0, 0});
  }
  return batch;
}

int32_t Dataset::source_count() const { return static_cast<int32_t>(impl_->sources.size()); }
const SourceInfo& Dataset::source(int32_t index) const { return impl_->sources.at(index)->info; }

int32_t Dataset::source_index(const std::string& name) const {
  std::vector<std::string> names;
  for (size_t i = 0; i < impl_->sources.size(); ++i) {
    names.push_back(impl_->sources[i]->info.name);
    if (names.back() == name) return static_cast<int32_t>(i);
  }
  throw std::invalid_argument(fmt::format("no data source '{}'; there are: {}", name, fmt::join(names, ", ")));
}

std::vector<int32_t> Dataset::document_ids(int32_t source, int64_t document) const {
  const auto& from = *impl_->sources.at(source);
  if (document < 0 || document >= from.info.documents) {
    throw std::invalid_argument(fmt::format("document {} of '{}', which has documents 0 to {}", document,
                                            from.info.name, from.info.documents - 1));
  }
  const auto& tokens = *from.opened.tokens;
  const int64_t begin = tokens.document_begin(document);
  std::vector<int32_t> ids(tokens.document_end(document) - begin);
  if (!ids.empty()) tokens.read(begin, static_cast<int64_t>(ids.size()), ids.data());
  for (int32_t& id : ids) id = token_of(id, tokens.masked());
  return ids;
}

std::string Dataset::document_text(int32_t source, int64_t document) const {
  return text(document_ids(source, document));
}

std::string Dataset::text(const std::vector<int32_t>& ids) const {
  if (!impl_->encoding.decode)
    throw std::invalid_argument("these tokens were opened without a tokenizer that can decode them");
  return impl_->encoding.decode(ids);
}

std::vector<Dataset::Piece> Dataset::pieces(const Provenance& row, int64_t context) const {
  const auto& source = *impl_->sources.at(row.source);
  if (const auto examples = source.examples.find(context); examples != source.examples.end()) {
    std::vector<Piece> parts;
    for (const auto& [document, count] : examples->second.parts(row.window)) parts.push_back({document, 0, count});
    return parts;
  }
  std::vector<int32_t> ids(context);
  std::vector<TokenView::Span> spans;
  source.train->read(row.window * context, context, ids.data(), spans);
  std::vector<Piece> out;
  for (const auto& span : spans) out.push_back({span.document, span.offset, span.count});
  return out;
}

std::vector<Sighting> Dataset::where(int32_t index, int64_t document, int64_t last_step) const {
  document_ids(index, document);  // is there such a document?
  if (last_step < 0) last_step = steps();
  if (last_step < 0) throw std::invalid_argument("the run's last stage has no end: say up to which step to look");
  std::vector<Sighting> seen;
  const auto& view = impl_->sources[index]->train;  // none: a validation set
  const auto place = view ? view->place_of(document) : std::nullopt;
  if (!place || place->count == 0) return seen;
  const auto [begin, offset, size] = *place;
  for (size_t s = 0; s < impl_->stages.size(); ++s) {
    const int64_t context = impl_->stages[s].data.context, windows = view->windows(context);
    if (impl_->stages[s].data.examples) {
      const ExampleRows& rows = impl_->sources[index]->examples.at(context);
      const int64_t row = rows.row_of(document);
      if (row < 0) continue;
      for (const auto& draw : impl_->sampler->find(static_cast<int64_t>(s), index, row, last_step))
        seen.push_back({draw.step, draw.row, draw.epoch, row, 0, std::min(size, context)});
      continue;
    }
    for (int64_t w = begin / context; w <= (begin + size - 1) / context && w < windows; ++w) {
      const int64_t from = std::max(begin, w * context), to = std::min(begin + size, (w + 1) * context);
      for (const auto& draw : impl_->sampler->find(static_cast<int64_t>(s), index, w, last_step)) {
        seen.push_back({draw.step, draw.row, draw.epoch, w, offset + from - begin, to - from});
      }
    }
  }
  std::sort(seen.begin(), seen.end(),
            [](const auto& a, const auto& b) { return std::pair(a.step, a.row) < std::pair(b.step, b.row); });
  return seen;
}

void Dataset::verify() const {
  for (const auto& source : impl_->sources) {
    source->opened.tokens->verify();
    if (source->opened.files_digest.empty()) continue;
    const std::string found = hash_files(source_files(source->options), source->info.name, {});
    if (found != source->opened.files_digest) {
      throw std::runtime_error(
          fmt::format("data source '{}' ({}): the digest of its files is {}, expected {}: the text was changed",
                      source->info.name, source->info.path, found, source->opened.files_digest));
    }
  }
}

}  // namespace cairn::data
