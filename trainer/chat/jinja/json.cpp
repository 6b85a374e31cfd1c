// json.dumps of Python, as the filter `tojson` of chat templates calls it.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "trainer/chat/jinja/text.h"
#include "trainer/chat/jinja/value.h"
#include "trainer/data/tokenizer/utf8.h"

namespace cairn::jinja {
namespace {

class Writer {
 public:
  explicit Writer(const JsonStyle& style) : style_(style) {}
  std::string take() { return std::move(out_); }

  void write(const Value& value, int depth = 0) {
    if (depth > 200) throw Error(Fault::limit, "values nest too deeply");
    switch (value.type()) {
      case Type::text:
        return quote(value.text());
      case Type::list:
      case Type::tuple:
        return write_items(value.items(), depth);
      case Type::dict:
        return write_entries(value.dict(), depth);
      case Type::none:
      case Type::boolean:
      case Type::integer:
      case Type::real:
        out_ += scalar(value);
        return;
      default:
        fail(fmt::format("Object of type {} is not JSON serializable", type_name(value)));
    }
  }

 private:
  static std::string scalar(const Value& value) {
    if (value.is(Type::none)) return "null";
    if (value.is(Type::boolean)) return value.boolean() ? "true" : "false";
    if (value.is(Type::integer)) return std::to_string(value.integer());
    if (std::isnan(value.real())) return "NaN";
    if (std::isinf(value.real())) return value.real() < 0 ? "-Infinity" : "Infinity";
    return repr(value.real());
  }

  void new_line(int depth) {
    if (!style_.indent) return;
    out_ += '\n';
    for (int i = 0; i < depth; ++i) out_ += *style_.indent;
  }

  void write_items(const List& items, int depth) {
    if (items.empty()) {
      out_ += "[]";
      return;
    }
    out_ += '[';
    for (size_t i = 0; i < items.size(); ++i) {
      if (i) out_ += style_.item_separator;
      new_line(depth + 1);
      write(items[i], depth + 1);
    }
    new_line(depth);
    out_ += ']';
  }

  void write_entries(const Dict& dict, int depth) {
    if (dict.entries.empty()) {
      out_ += "{}";
      return;
    }
    auto entries = dict.entries;
    if (style_.sort_keys)
      std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return less(a.first, b.first); });
    out_ += '{';
    bool first = true;
    for (const auto& [key, value] : entries) {
      if (!first) out_ += style_.item_separator;
      first = false;
      new_line(depth + 1);
      if (key.is(Type::text)) {
        quote(key.text());
      } else if (key.is(Type::none) || key.is(Type::boolean) || key.is(Type::integer) || key.is(Type::real)) {
        quote(scalar(key));
      } else {
        fail(fmt::format("keys must be str, int, float, bool or None, not {}", type_name(key)));
      }
      out_ += style_.key_separator;
      write(value, depth + 1);
    }
    new_line(depth);
    out_ += '}';
  }

  void quote(std::string_view text) {
    out_ += '"';
    data::for_each_char(text, [&](uint32_t c, std::string_view bytes) {
      switch (c) {
        case '"':
          out_ += "\\\"";
          break;
        case '\\':
          out_ += "\\\\";
          break;
        case '\n':
          out_ += "\\n";
          break;
        case '\r':
          out_ += "\\r";
          break;
        case '\t':
          out_ += "\\t";
          break;
        case '\b':
          out_ += "\\b";
          break;
        case '\f':
          out_ += "\\f";
          break;
        default:
          if (c < 0x20 || (style_.ascii && c > 0x7E && c < 0x10000)) {
            out_ += fmt::format("\\u{:04x}", c);
          } else if (style_.ascii && c >= 0x10000) {
            out_ += fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + ((c - 0x10000) >> 10), 0xDC00 + (c & 0x3FF));
          } else {
            out_ += bytes;
          }
      }
    });
    out_ += '"';
  }

  const JsonStyle& style_;
  std::string out_;
};

}  // namespace

std::string to_json(const Value& value, const JsonStyle& style) {
  Writer writer(style);
  writer.write(value);
  return writer.take();
}

}  // namespace cairn::jinja
