#include "trainer/text_stream.h"

#include <algorithm>
#include <utility>

namespace cairn {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// Bytes at the end of `text` that are the beginning, not the whole, of `stop`.
size_t begun(std::string_view text, std::string_view stop) {
  for (size_t n = std::min(text.size(), stop.size() - 1); n > 0; --n) {
    if (text.ends_with(stop.substr(0, n))) return n;
  }
  return 0;
}

}  // namespace

TextStream::TextStream(const data::Tokenizer& tokenizer, std::vector<std::string> stop)
    : tokenizer_(tokenizer), stop_(std::move(stop)) {
  std::erase(stop_, "");
  for (const std::string& s : stop_) longest_stop_ = std::max(longest_stop_, s.size());
}

// <0x0A> and its like: a decoder may take a run of them together.
bool TextStream::open_ended(int32_t id) const {
  const std::string token = tokenizer_.id_to_token(id);
  return pending_.ends_with(kReplacement) || (token.size() == 6 && token.starts_with("<0x") && token[5] == '>');
}

void TextStream::push(int32_t id) {
  const size_t before = settled_.size();
  window_.push_back(id);
  const std::string decoded = tokenizer_.decode(window_);
  // What the settled ids decode to comes out again at the front.
  pending_ = decoded.substr(std::min(decoded.size(), context_text_.size()));
  look_for_stop(before - std::min(before, longest_stop_));
  if (stopped_ || open_ended(id)) return;
  settled_ += pending_;
  // A token without text is no context for the next: a space that begins a word would be lost after it.
  if (!pending_.empty()) {
    window_.erase(window_.begin(), window_.begin() + context_);
    context_text_ = tokenizer_.decode(window_);
  } else if (tokenizer_.id_to_token(id).empty()) {
    window_.pop_back();
  }
  context_ = window_.size();
  pending_.clear();
}

void TextStream::look_for_stop(size_t from) {
  if (stop_.empty()) return;
  const std::string tail = settled_.substr(from) + pending_;
  size_t cut = std::string::npos;
  for (const std::string& s : stop_) cut = std::min(cut, tail.find(s));
  if (cut == std::string::npos) return;
  stopped_ = true;
  settled_.resize(from);
  settled_ += tail.substr(0, cut);
  pending_.clear();
}

std::string TextStream::take() {
  size_t end = settled_.size();
  if (!stopped_) {
    const size_t from = end - std::min(end, longest_stop_);
    const std::string tail = settled_.substr(from) + pending_;
    // A stop string may begin in the settled text and go on in what is pending.
    for (const std::string& s : stop_) end = std::min(end, from + tail.size() - begun(tail, s));
  }
  if (end <= shown_) return "";
  const std::string piece = settled_.substr(shown_, end - shown_);
  shown_ = end;
  return piece;
}

std::string TextStream::finish() {
  settled_ += std::exchange(pending_, "");
  const std::string piece = settled_.substr(std::min(shown_, settled_.size()));
  shown_ = settled_.size();
  return piece;
}

}  // namespace cairn
