#include "trainer/evaluate.h"

#include <numbers>

#include "trainer/step.h"

namespace cairn {
namespace {

// Bytes of the text that the target tokens spell; a row that ends inside a character counts the bytes that it has.
int64_t target_bytes(const data::Batch& batch, const data::Tokenizer& tokenizer) {
  std::vector<int32_t> ids;
  for (const int32_t id : batch.targets) {
    if (id >= 0) ids.push_back(id);
  }
  return static_cast<int64_t>(tokenizer.decode_bytes(ids, true).size());
}

// One row of ids[begin, end) predicting ids[begin + 1, end]; only targets from `first_target` on count.
data::Batch window(const std::vector<int32_t>& ids, int64_t begin, int64_t end, int64_t first_target) {
  data::Batch batch{.rows = 1, .context = end - begin};
  for (int64_t i = begin; i < end; ++i) {
    batch.inputs.push_back(ids[i]);
    batch.targets.push_back(i + 1 >= first_target ? ids[i + 1] : -1);
    batch.positions.push_back(static_cast<int32_t>(i - begin));
    batch.segments.push_back(0);
  }
  return batch;
}

}  // namespace

Evaluation evaluate_set(const models::Decoder& model, const data::Dataset& data, const std::string& set,
                        int64_t sequences, int64_t micro_batch, int64_t context, const data::Tokenizer* tokenizer,
                        const models::Pass& like) {
  Evaluation result;
  int64_t bytes = 0;
  double sum = 0;
  const int64_t rows = std::min(sequences, data.validation_sequences(set, context));
  for (int64_t row = 0; row < rows; row += micro_batch) {
    const data::Batch batch = data.validation_rows(set, row, std::min(micro_batch, rows - row), context);
    ModelInput input = model_input(batch);
    input.pass.products = like.products;
    input.pass.reference = like.reference;
    input.pass.aten = like.aten;
    input.pass.indexer = like.indexer;
    input.pass.indexer.train = false;
    sum += model.loss(input.ids, input.targets, input.pass, 1.0, 0, false).nll;
    result.tokens += batch.target_count();
    if (tokenizer) bytes += target_bytes(batch, *tokenizer);
  }
  result.nll = result.tokens ? sum / result.tokens : 0;
  result.bits_per_byte = bytes ? sum / std::numbers::ln2 / bytes : 0;
  return result;
}

Evaluation evaluate_text(const models::Decoder& model, const data::Tokenizer& tokenizer, const std::string& text,
                         int64_t context, int64_t stride) {
  if (stride < 1 || stride > context)
    throw std::invalid_argument(fmt::format("stride: found {}, expected 1 to the context ({})", stride, context));
  if (context > model.config().max_position_embeddings) {
    throw std::invalid_argument(
        fmt::format("context: found {}, expected at most {}, the model's max_position_embeddings", context,
                    model.config().max_position_embeddings));
  }
  const std::vector<int32_t> ids = tokenizer.encode(text, true);
  const int64_t count = ids.size();
  if (count < 2)
    throw std::invalid_argument(fmt::format("the text gives {} tokens; at least 2 are needed to predict one", count));
  Evaluation result;
  double sum = 0;
  for (int64_t begin = 0, predicted = 1; predicted < count; begin += stride) {
    const int64_t end = std::min(begin + context, count - 1);
    const data::Batch batch = window(ids, begin, end, predicted);
    ModelInput input = model_input(batch);
    sum += model.loss(input.ids, input.targets, input.pass, 1.0, 0, false).nll;
    result.tokens += batch.target_count();
    predicted = end + 1;
  }
  result.nll = sum / result.tokens;
  result.bits_per_byte = text.empty() ? 0 : sum / std::numbers::ln2 / text.size();
  return result;
}

std::vector<float> log_probabilities(const models::Decoder& model, const std::vector<int32_t>& ids) {
  if (ids.size() < 2) return {};
  const int64_t length = static_cast<int64_t>(ids.size()) - 1;
  if (length > model.config().max_position_embeddings) {
    throw std::invalid_argument(
        fmt::format("{} ids: the model takes at most {}", ids.size(), model.config().max_position_embeddings + 1));
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= model.config().vocab_size)
      throw std::invalid_argument(
          fmt::format("id {} at position {}: the vocabulary has {}", ids[i], i, model.config().vocab_size));
  }
  ModelInput input = model_input(window(ids, 0, length, 1));
  const at::Tensor nll =
      model.loss(input.ids, input.targets, input.pass, 1.0, 0, false).row_nll.cpu().to(at::kFloat).contiguous();
  std::vector<float> result(length);
  for (int64_t i = 0; i < length; ++i) result[i] = -nll.data_ptr<float>()[i];
  return result;
}

}  // namespace cairn
