// NOTE: PCRE2's own match limit counts anew at every starting character, so a long text can take the limit times its
// length. Automatic callouts come before every item of the pattern, wherever the match began: they count what is done
// in all, the characters passed over included.
#include "trainer/rl/rewards/pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <cstdlib>
#include <stdexcept>

namespace cairn::rl {
namespace {

struct Count {
  int64_t left;
  int64_t last = 0;
};

int count_steps(pcre2_callout_block* block, void* data) {
  auto& count = *static_cast<Count*>(data);
  const auto at = static_cast<int64_t>(block->current_position);
  count.left -= 1 + std::abs(at - count.last);
  count.last = at;
  return count.left < 0 ? PCRE2_ERROR_CALLOUT : 0;
}

constexpr uint32_t kHeapKiB = 64 << 10;

struct Scratch {
  pcre2_match_data* data = nullptr;
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  explicit Scratch(const pcre2_code* code) : data(pcre2_match_data_create_from_pattern(code, nullptr)) {}
  ~Scratch() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
  }
};

}  // namespace

struct Pattern::Code {
  std::string regex;
  pcre2_code* code = nullptr;
  int groups = 0;
  ~Code() { pcre2_code_free(code); }
};

Pattern::Pattern(const std::string& regex) : code_(std::make_unique<Code>()) {
  code_->regex = regex;
  int error = 0;
  size_t offset = 0;
  code_->code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(regex.data()), regex.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF | PCRE2_AUTO_CALLOUT, &error, &offset, nullptr);
  if (!code_->code) {
    unsigned char message[256];
    pcre2_get_error_message(error, message, sizeof message);
    throw std::invalid_argument(fmt::format("the regular expression `{}` is not understood: {} (at character {})",
                                            regex, reinterpret_cast<const char*>(message), offset));
  }
  uint32_t groups = 0;
  pcre2_pattern_info(code_->code, PCRE2_INFO_CAPTURECOUNT, &groups);
  code_->groups = static_cast<int>(groups);
}
Pattern::~Pattern() = default;

int Pattern::groups() const { return code_->groups; }

static Pattern::Outcome run(const pcre2_code* code, int groups, std::string_view text, bool last, std::string* group) {
  Scratch scratch(code);
  Count count{Pattern::kSteps};
  pcre2_set_callout(scratch.context, count_steps, &count);
  pcre2_set_match_limit(scratch.context, static_cast<uint32_t>(Pattern::kSteps));
  pcre2_set_heap_limit(scratch.context, kHeapKiB);
  auto outcome = Pattern::Outcome::none;
  for (size_t from = 0; from <= text.size();) {
    const int rc = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                               PCRE2_NOTEMPTY_ATSTART * (from > 0), scratch.data, scratch.context);
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) return Pattern::Outcome::gave_up;
    const size_t* at = pcre2_get_ovector_pointer(scratch.data);
    outcome = Pattern::Outcome::found;
    if (group) {
      const int which = groups > 0 ? 2 : 0;
      const bool set = (which == 0 || rc > 1) && at[which] != PCRE2_UNSET && at[which] <= at[which + 1];
      *group = set ? std::string(text.substr(at[which], at[which + 1] - at[which])) : "";
    }
    if (!last) break;
    from = at[1] > from ? at[1] : from + 1;
    while (from < text.size() && (static_cast<unsigned char>(text[from]) & 0xC0) == 0x80) ++from;
    count.last = static_cast<int64_t>(from);
  }
  return outcome;
}

Pattern::Outcome Pattern::search(std::string_view text, std::string* group) const {
  return run(code_->code, code_->groups, text, false, group);
}

Pattern::Outcome Pattern::search_last(std::string_view text, std::string* group) const {
  return run(code_->code, code_->groups, text, true, group);
}

}  // namespace cairn::rl
