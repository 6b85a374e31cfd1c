#include "trainer/data/encoding.h"

#include <fmt/format.h>

#include "trainer/data/tokenizer/tokenizer.h"

namespace cairn::data {

Encoding encoding_of(std::shared_ptr<const Tokenizer> tokenizer) {
  Encoding encoding;
  const int32_t eos = tokenizer->eos_id().value_or(-1);
  encoding.encode = [tokenizer, eos](std::string_view text, std::vector<int32_t>& ids) {
    auto found = tokenizer->encode(text, true);
    // Some post-processors close the text themselves; the packing adds EOS, once.
    if (eos >= 0 && !found.empty() && found.back() == eos) found.pop_back();
    ids.insert(ids.end(), found.begin(), found.end());
  };
  encoding.extend = [tokenizer](std::string_view text, std::vector<int32_t>& ids) {
    const auto found = tokenizer->encode(text, false);
    ids.insert(ids.end(), found.begin(), found.end());
  };
  encoding.decode = [tokenizer](const std::vector<int32_t>& ids) { return tokenizer->decode(ids); };
  encoding.vocab_size = tokenizer->vocab_size();
  encoding.eos = eos;
  encoding.digest = fmt::format("{:016x}", tokenizer->digest());
  return encoding;
}

}  // namespace cairn::data
