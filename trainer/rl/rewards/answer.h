// Where an answer stands in a text: the places that rewards and data sets name.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace cairn::rl {

class Pattern;

// Each is none where its mark is not there, and a text (perhaps empty) where it is.
std::optional<std::string_view> behind_hashes(std::string_view text);  // behind the last ####, to the end of its line
std::optional<std::string_view> in_box(std::string_view text);         // of the last \boxed{} or \fbox{} that closes
std::optional<std::string_view> in_tag(std::string_view text);         // of the last <answer>...</answer>
std::optional<std::string_view> last_line(std::string_view text);      // the last one that is not blank

// A place by its name: hashes, boxed, tag, last_line, text. Throws std::invalid_argument for another name.
std::optional<std::string_view> at_place(const std::string& name, std::string_view text);

// `extract:` of a data set: text, hashes, boxed, tag, last_line, last_number (as a number's exact text), pattern (its
// first group, of the first match). What is found is trimmed.
class Extract {
 public:
  // Throws std::invalid_argument for another name, a pattern that is not understood or has no group.
  Extract(const std::string& name, const std::string& pattern);
  std::optional<std::string> operator()(std::string_view text) const;

 private:
  std::string name_;
  std::shared_ptr<const Pattern> pattern_;
};

std::string_view trimmed(std::string_view text);

}  // namespace cairn::rl
