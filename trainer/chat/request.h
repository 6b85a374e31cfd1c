// `cairn chat --render`: conversations in JSON, the prompts that a model's template makes of them.
#pragma once

#include <filesystem>
#include <iosfwd>

namespace cairn {

// Reads one request from IN: a list of messages, or an object with `messages` and any of `tools`, `documents`,
// `add_generation_prompt`, `continue_final_message`, `chat_template` (a text instead of the model's own) and `variables`.
// Writes the prompt and nothing else. Returns 0. Throws std::runtime_error for what is no request, ChatTemplateError.
int render_one(const std::filesystem::path& folder, std::istream& in, std::ostream& out);

// A request a line, and for each a line {"text", "assistant": [[begin, end], ...]} (bytes), or {"error": {"reason",
// "line", "message"}} where the template refuses it. Returns 1 where one was refused, else 0.
int render_json_lines(const std::filesystem::path& folder, std::istream& in, std::ostream& out);

}  // namespace cairn
