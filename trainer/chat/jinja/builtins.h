// The filters, tests, functions and methods that templates may call: tables name -> function.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/chat/jinja/value.h"

namespace cairn::jinja {

// What built-ins may ask of the rendering.
class Host {
 public:
  virtual ~Host() = default;
  // Work done: steps of the template, and bytes or items made. Throws Error (limit) where it becomes too much.
  virtual void spend(int64_t steps) = 0;
  virtual std::chrono::system_clock::time_point now() = 0;
  virtual void adopt(const std::shared_ptr<Namespace>& space) = 0;  // emptied at the end: it may hold itself
};

enum class Standing { known, lacking, unknown };  // here; in Jinja alone; nowhere
Standing filter_standing(std::string_view name);
bool is_test(std::string_view name);

Value apply_filter(Host& host, std::string_view name, const Value& value, const Arguments& arguments);
bool apply_test(Host& host, std::string_view name, const Value& value, const Arguments& arguments);

// A global of chat templates: range, namespace, dict, raise_exception, strftime_now. Nothing where there is none.
std::optional<Value> global(Host& host, std::string_view name);

// value.name and value[key] as the sandbox has them: undefined where there is nothing, or nothing safe.
Value attribute_of(Host& host, const Value& value, const std::string& name);
Value item_of(Host& host, const Value& value, const Value& key);
Value slice_of(Host& host, const Value& value, const Value& start, const Value& stop, const Value& step);

// Python's operators + - * / // % **, and the signs.
Value binary(Host& host, std::string_view op, const Value& a, const Value& b);
Value with_sign(std::string_view op, const Value& a);

// Arguments by position or name, as a Python function of these parameters takes them; "" takes no name. Fails for one too many, one
// unknown, one given twice, one missing (the first REQUIRED must be given).
std::vector<std::optional<Value>> bind(const char* function, const Arguments& arguments,
                                       const std::vector<const char*>& names, size_t required);
int64_t integer_argument(const Value& value);             // fails where it is no int
const std::string& text_argument(const Value& value);     // fails where it is no str

}  // namespace cairn::jinja
