// What `loop` knows inside a for statement. An iterable without a length is read ahead only when that is asked for.
#include <fmt/format.h>

#include <algorithm>

#include "trainer/chat/jinja/value.h"

namespace cairn::jinja {
namespace {

// The item that comes next, read ahead; null at the end.
const Value* peek(Loop& loop) {
  if (loop.ahead.empty()) {
    if (auto next = loop.pull()) loop.ahead.push_back(std::move(*next));
  }
  return loop.ahead.empty() ? nullptr : &loop.ahead.back();
}

int64_t length_of(Loop& loop) {
  if (!loop.length) {
    loop.length = loop.size();
    if (!loop.length) {
      List rest;
      while (auto next = loop.pull()) rest.push_back(std::move(*next));
      loop.length = loop.index0 + 1 + static_cast<int64_t>(loop.ahead.size() + rest.size());
      std::reverse(rest.begin(), rest.end());
      loop.ahead.insert(loop.ahead.begin(), rest.begin(), rest.end());
    }
  }
  return *loop.length;
}

}  // namespace

Value Loop::get(std::string_view attribute) const {
  Loop& loop = const_cast<Loop&>(*this);  // reading ahead changes nothing that a template can tell
  if (attribute == "index") return index0 + 1;
  if (attribute == "index0") return index0;
  if (attribute == "first") return index0 == 0;
  if (attribute == "last") return peek(loop) == nullptr;
  if (attribute == "length") return length_of(loop);
  if (attribute == "revindex") return length_of(loop) - index0;
  if (attribute == "revindex0") return length_of(loop) - index0 - 1;
  if (attribute == "depth") return 1;
  if (attribute == "depth0") return 0;
  if (attribute == "previtem") return before ? *before : undefined("there is no previous item");
  if (attribute == "nextitem") {
    const Value* next = peek(loop);
    return next ? *next : undefined("there is no next item");
  }
  return undefined(fmt::format("'jinja2.runtime.LoopContext object' has no attribute '{}'", attribute));
}

}  // namespace cairn::jinja
