#include "trainer/chat/jinja/renderer.h"

#include <fmt/format.h>

#include "trainer/chat/jinja/text.h"

namespace cairn::jinja {
namespace {

using E = Expression;
using S = Statement;

constexpr int kDeepest = 2500;  // calls of this file in one another: well within a thread's stack

// The variables of one call of a function. A value without a type of its own (missing) is one not set.
struct Activation {
  Activation(const FunctionPlan& plan, Activation* outer) : slots(plan.slots, missing()), outer(outer) {}
  static Value missing() { return Undefined{nullptr}; }
  std::vector<Value> slots;
  Activation* outer;
};
bool is_missing(const Value& value) { return value.is(Type::undefined) && !value.undefined().message; }

enum class Flow { on, break_, continue_ };

class Renderer : public Host {
 public:
  Renderer(const std::vector<std::pair<std::string, Value>>& variables,
           const std::function<std::chrono::system_clock::time_point()>& now, const Limits& limits)
      : variables_(variables), now_(now), limits_(limits) {}

  ~Renderer() override {
    for (const auto& space : spaces_)
      if (const auto alive = space.lock()) alive->attributes.entries.clear();
  }

  Rendered run(const Template& parsed) {
    try {
      Activation& root = keep(parsed.function, nullptr);
      enter(parsed.loads, root);
      execute(parsed.body, root);
    } catch (Error& error) {
      if (error.line == 0) error.line = line_;
      throw;
    }
    return std::move(rendered_);
  }

  void spend(int64_t steps) override {
    steps_ += steps;
    if (steps_ > limits_.steps) throw Error(Fault::limit, "it takes too long: more than the steps that a template may take");
  }
  std::chrono::system_clock::time_point now() override { return now_(); }
  void adopt(const std::shared_ptr<Namespace>& space) override {
    spend(20);
    spaces_.push_back(space);
  }

 private:
  struct Deeper {
    explicit Deeper(Renderer& r) : renderer(r) {
      if (++r.depth_ > kDeepest) throw Error(Fault::limit, "it nests too deeply");
    }
    ~Deeper() { --renderer.depth_; }
    Renderer& renderer;
  };
  // Catches what is written while it lives.
  struct Capture {
    explicit Capture(Renderer& r) : renderer(r), before(r.out_) {
      r.out_ = &text;
      ++r.captures_;
    }
    ~Capture() {
      renderer.out_ = before;
      --renderer.captures_;
    }
    Renderer& renderer;
    std::string* before;
    std::string text;
  };

  void at(int line) {
    line_ = line;
    spend(1);
  }

  void write(std::string_view text) {
    spend(static_cast<int64_t>(text.size() / 32));
    if (static_cast<int64_t>(out_->size() + text.size()) > limits_.bytes)
      throw Error(Fault::limit, fmt::format("a text of more than {} bytes", limits_.bytes));
    *out_ += text;
  }

  Value text_value(std::string text) {
    spend(static_cast<int64_t>(text.size() / 32));
    if (static_cast<int64_t>(text.size()) > limits_.bytes)
      throw Error(Fault::limit, fmt::format("a text of more than {} bytes", limits_.bytes));
    return text;
  }

  // ---- variables ----
  // An activation that lives until the end: functions made in it may be called later.
  Activation& keep(const FunctionPlan& plan, Activation* outer) {
    spend(10 + plan.slots);
    kept_.push_back(std::make_unique<Activation>(plan, outer));
    return *kept_.back();
  }

  static Value& slot(const Place& place, Activation& activation) {
    Activation* a = &activation;
    for (int hops = place.hops; hops > 0; --hops) a = a->outer;
    return a->slots[place.slot];
  }

  Value resolve(const std::string& name) {
    for (const auto& [key, value] : variables_)
      if (key == name) return value;
    if (auto found = global(*this, name)) return *found;
    return Activation::missing();
  }

  void enter(const std::vector<Load>& loads, Activation& activation) {
    for (const Load& load : loads) {
      if (load.kind == Load::resolve) activation.slots[load.slot] = resolve(load.name);
      if (load.kind == Load::alias) activation.slots[load.slot] = slot(load.from, activation);
      if (load.kind == Load::clear) activation.slots[load.slot] = Activation::missing();
    }
  }
  void leave(const std::vector<Load>& loads, Activation& activation) {
    for (const Load& load : loads) activation.slots[load.slot] = Activation::missing();
  }

  Value read(const E& e, Activation& activation) {
    const Value& value = slot(e.place, activation);
    return is_missing(value) ? undefined(fmt::format("{} is undefined", repr(e.name))) : value;
  }

  void assign(const E& target, const Value& value, Activation& activation) {
    switch (target.kind) {
      case E::variable:
        slot(target.place, activation) = value;
        return;
      case E::space_field: {
        const Value& space = slot(target.place, activation);
        if (target.text.starts_with("_"))
          fail(fmt::format("Chat templates cannot store underscore-prefixed attributes on a namespace, but got {}.",
                           repr(target.text)));
        space.space().attributes.set(target.text, value);
        return;
      }
      default: {
        const List items = to_list(value);
        if (items.size() != target.items.size())
          fail(fmt::format("{} values to unpack (expected {})",
                           items.size() < target.items.size() ? "not enough" : "too many", target.items.size()));
        for (size_t i = 0; i < items.size(); ++i) assign(*target.items[i], items[i], activation);
      }
    }
  }

  // NOTE: what the filter of a for statement lets through is made anew of the target's variables: pairs become tuples.
  static Value packed(const E& target, Activation& activation) {
    if (target.kind == E::variable) return slot(target.place, activation);
    List items;
    for (const auto& item : target.items) items.push_back(packed(*item, activation));
    return tuple(std::move(items));
  }

  void check_spaces(const E& target, Activation& activation) {
    if (target.kind == E::space_field && !slot(target.place, activation).is(Type::space))
      fail("cannot assign attribute on non-namespace object");
    for (const auto& item : target.items) check_spaces(*item, activation);
  }

  // ---- statements ----
  Flow execute(const Body& body, Activation& activation) {
    const Deeper deeper(*this);
    for (const auto& s : body)
      if (const Flow flow = execute(*s, activation); flow != Flow::on) return flow;
    return Flow::on;
  }

  Flow execute(const S& s, Activation& activation) {
    at(s.line);
    switch (s.kind) {
      case S::data:
        write(s.text);
        break;
      case S::output:
        write(to_text(evaluate(*s.a, activation)));
        break;
      case S::set: {
        check_spaces(*s.target, activation);
        assign(*s.target, evaluate(*s.a, activation), activation);
        break;
      }
      case S::set_block: {
        Value value;
        {
          enter(s.loads, activation);
          Capture capture(*this);
          if (const Flow flow = execute(s.body, activation); flow != Flow::on) return flow;
          value = text_value(std::move(capture.text));
        }
        // NOTE: the field of something else than a namespace is refused by Jinja too, with a message of Python's.
        check_spaces(*s.target, activation);
        assign(*s.target, s.a ? filtered(*s.a, value, activation) : value, activation);
        leave(s.loads, activation);
        break;
      }
      case S::filter_block: {
        Value value;
        enter(s.loads, activation);
        {
          Capture capture(*this);
          if (const Flow flow = execute(s.body, activation); flow != Flow::on) return flow;
          value = text_value(std::move(capture.text));
        }
        write(to_text(filtered(*s.a, value, activation)));
        leave(s.loads, activation);
        break;
      }
      case S::if_: {
        if (truth(evaluate(*s.a, activation))) return execute(s.body, activation);
        for (const auto& branch : s.branches) {
          at(branch->line);
          if (truth(evaluate(*branch->a, activation))) return execute(branch->body, activation);
        }
        return execute(s.otherwise, activation);
      }
      case S::for_:
        return execute_for(s, activation);
      case S::with: {
        enter(s.loads, activation);
        for (size_t i = 0; i < s.targets.size(); ++i)
          assign(*s.targets[i], evaluate(*s.values[i], activation), activation);
        if (const Flow flow = execute(s.body, activation); flow != Flow::on) return flow;
        leave(s.loads, activation);
        break;
      }
      case S::macro:
        slot(s.place, activation) = function_of(s, activation, "<Macro " + repr(s.text) + ">");
        break;
      case S::call_block:
        write(to_text(call(*s.a, activation, function_of(s, activation, "<Macro anonymous>"))));
        break;
      case S::generation:
        generate(s, activation);
        break;
      case S::break_:
        return Flow::break_;
      case S::continue_:
        return Flow::continue_;
    }
    return Flow::on;
  }

  Flow execute_for(const S& s, Activation& activation) {
    const Value over = evaluate(*s.a, activation);
    line_ = s.line;
    auto pull = iterate(over);
    // The filter is a function of its own, asked item by item.
    Activation* filter = s.test ? &keep(s.test_function, &activation) : nullptr;
    if (filter) {
      enter(s.test_loads, *filter);
      pull = [this, &s, filter, pull]() -> std::optional<Value> {
        while (auto item = pull()) {
          spend(1);
          assign(*s.test_target, *item, *filter);
          if (truth(evaluate(*s.test, *filter))) return packed(*s.test_target, *filter);
        }
        return std::nullopt;
      };
    }
    const auto loop = std::make_shared<Loop>();
    loop->pull = pull;
    loop->size = [over, filtered = filter != nullptr] { return filtered ? std::nullopt : size_of(over); };
    bool empty = true;  // NOTE: in Jinja a turn that ends in break or continue does not count
    while (true) {
      spend(1);
      std::optional<Value> item;
      if (!loop->ahead.empty()) {
        item = std::move(loop->ahead.back());
        loop->ahead.pop_back();
      } else {
        item = loop->pull();
      }
      if (!item) break;
      ++loop->index0;
      loop->before = loop->current;
      loop->current = std::make_shared<Value>(*item);
      line_ = s.line;
      assign(*s.target, *item, activation);
      if (s.loop_slot >= 0) activation.slots[s.loop_slot] = loop;
      enter(s.loads, activation);
      const Flow flow = execute(s.body, activation);
      if (flow == Flow::break_) break;
      if (flow == Flow::on) empty = false;
    }
    leave(s.loads, activation);
    if (!empty || s.otherwise.empty()) return Flow::on;
    enter(s.otherwise_loads, activation);
    const Flow flow = execute(s.otherwise, activation);
    leave(s.otherwise_loads, activation);
    return flow;
  }

  void generate(const S& s, Activation& activation) {
    const bool known = captures_ == 0;
    if (!known) rendered_.generated_unknown = true;
    const Value said = call_body(s, activation, {});
    const size_t begin = out_->size();
    write(said.text());
    if (known) rendered_.generated.emplace_back(begin, out_->size());
  }

  // ---- macros ----
  Value function_of(const S& s, Activation& activation, std::string text) {
    return std::make_shared<const Function>(Function{s.text, std::move(text), [this, &s, &activation](const Arguments& a) {
                                                       return call_body(s, activation, a);
                                                     }});
  }

  Value call_body(const S& s, Activation& outer, Arguments arguments) {
    const Deeper deeper(*this);
    std::optional<Activation> own;
    Activation& activation =
        s.function.makes_functions ? keep(s.function, &outer) : own.emplace(s.function, &outer);
    const size_t count = s.parameters.size();
    auto& named = arguments.named;
    const auto take = [&](const std::string& name) -> std::optional<Value> {
      for (auto at = named.begin(); at != named.end(); ++at) {
        if (at->first != name) continue;
        Value value = at->second;
        named.erase(at);
        return value;
      }
      return std::nullopt;
    };
    for (size_t i = 0; i < count; ++i) {
      Value& parameter = activation.slots[s.parameters[i].slot];
      if (i < arguments.positional.size()) {
        parameter = arguments.positional[i];
      } else if (auto value = take(s.parameters[i].name)) {
        parameter = *value;
      }
    }
    if (s.caller_slot >= 0) {
      const auto caller = take("caller");
      activation.slots[s.caller_slot] = caller && !caller->is(Type::none) ? *caller : undefined("No caller defined");
    }
    const std::string name = s.kind == S::macro ? repr(s.text) : "None";
    if (s.kwargs_slot >= 0) {
      Dict rest;
      for (const auto& [key, value] : named) rest.set(key, value);
      activation.slots[s.kwargs_slot] = rest;
    } else if (!named.empty()) {
      for (const auto& [key, value] : named)
        if (key == "caller")
          fail(fmt::format("macro {} was invoked with two values for the special caller argument. This is most likely a bug.",
                           name));
      fail(fmt::format("macro {} takes no keyword argument {}", name, repr(named[0].first)));
    }
    if (s.varargs_slot >= 0) {
      List rest;
      for (size_t i = count; i < arguments.positional.size(); ++i) rest.push_back(arguments.positional[i]);
      activation.slots[s.varargs_slot] = tuple(std::move(rest));
    } else if (arguments.positional.size() > count) {
      fail(fmt::format("macro {} takes not more than {} argument(s)", name, count));
    }
    Capture capture(*this);
    enter(s.loads, activation);
    for (const auto& p : s.parameters) {
      Value& parameter = activation.slots[p.slot];
      if (!is_missing(parameter)) continue;
      const Value value = p.fallback ? evaluate(*p.fallback, activation)
                                     : undefined(fmt::format("parameter {} was not provided", repr(p.name)));
      activation.slots[p.slot] = value;
    }
    execute(s.body, activation);
    return text_value(std::move(capture.text));
  }

  // ---- expressions ----
  Arguments arguments_of(const E& e, Activation& activation) {
    Arguments arguments;
    for (const auto& item : e.items) arguments.positional.push_back(evaluate(*item, activation));
    for (const auto& [key, value] : e.named) arguments.named.emplace_back(key, evaluate(*value, activation));
    if (e.b)
      for (Value& item : to_list(evaluate(*e.b, activation))) arguments.positional.push_back(std::move(item));
    if (e.c) {
      const Value more = evaluate(*e.c, activation);
      if (!more.is(Type::dict)) fail(fmt::format("argument after ** must be a mapping, not {}", type_name(more)));
      for (const auto& [key, value] : more.dict().entries) {
        if (!key.is(Type::text)) fail("keywords must be strings");
        for (const auto& [other, taken] : arguments.named)
          if (other == key.text()) fail(fmt::format("got multiple values for keyword argument {}", repr(other)));
        arguments.named.emplace_back(key.text(), value);
      }
    }
    return arguments;
  }

  Value call(const E& e, Activation& activation, const std::optional<Value>& caller = {}) {
    const Value callee = evaluate(*e.a, activation);
    Arguments arguments = arguments_of(e, activation);
    if (caller) {
      for (const auto& [key, value] : arguments.named)
        if (key == "caller") fail("got multiple values for keyword argument 'caller'");
      arguments.named.emplace_back("caller", *caller);
    }
    at(e.line);
    if (callee.is(Type::undefined)) fail_undefined(callee);
    if (callee.is(Type::loop)) fail("The loop must have the 'recursive' marker to be called recursively.");
    if (!callee.is(Type::function)) fail(fmt::format("'{}' object is not callable", type_name(callee)));
    const Value result = callee.function().call(arguments);
    line_ = e.line;
    return result;
  }

  Value filtered(const E& e, const Value& head, Activation& activation) {
    const Value value = e.a ? (e.a->kind == E::filter ? filtered(*e.a, head, activation) : evaluate(*e.a, activation)) : head;
    const Arguments arguments = arguments_of(e, activation);
    at(e.line);
    return apply_filter(*this, e.name, value, arguments);
  }

  bool compares(const std::string& op, const Value& a, const Value& b) {
    if (op == "==") return equal(a, b);
    if (op == "!=") return !equal(a, b);
    if (op == "<") return less(a, b);
    if (op == ">") return less(b, a);
    if (op == "<=") return less(a, b) || equal(a, b);
    if (op == ">=") return less(b, a) || equal(a, b);
    return contains(b, a) == (op == "in");
  }

  Value compare(const E& e, Activation& activation) {
    Value left = evaluate(*e.a, activation);
    for (size_t i = 0; i < e.items.size(); ++i) {
      Value right = evaluate(*e.items[i], activation);
      line_ = e.line;
      spend(work_of(left) + work_of(right));
      if (!compares(e.operators[i], left, right)) return false;
      left = std::move(right);
    }
    return true;
  }

  static int64_t work_of(const Value& value) {
    if (value.is(Type::text)) return static_cast<int64_t>(value.text().size() / 32);
    return value.is(Type::list) || value.is(Type::tuple) ? static_cast<int64_t>(value.items().size()) : 0;
  }

  Value evaluate(const E& e, Activation& activation) {
    const Deeper deeper(*this);
    at(e.line);
    switch (e.kind) {
      case E::constant:
        return e.value;
      case E::variable:
        return read(e, activation);
      case E::space_field:
        break;  // a target only
      case E::tuple:
      case E::list: {
        List items;
        for (const auto& item : e.items) items.push_back(evaluate(*item, activation));
        return e.kind == E::tuple ? tuple(std::move(items)) : Value(std::move(items));
      }
      case E::dict: {
        Dict dict;
        for (size_t i = 0; i < e.items.size(); i += 2) {
          const Value key = evaluate(*e.items[i], activation);
          const Value value = evaluate(*e.items[i + 1], activation);
          if (!is_hashable(key)) fail(fmt::format("unhashable type: '{}'", type_name(key)));
          dict.set(key, value);
        }
        return dict;
      }
      case E::attribute: {
        const Value of = evaluate(*e.a, activation);
        line_ = e.line;
        return attribute_of(*this, of, e.name);
      }
      case E::item: {
        const Value of = evaluate(*e.a, activation), key = evaluate(*e.b, activation);
        line_ = e.line;
        return item_of(*this, of, key);
      }
      case E::slice: {
        const auto bound = [&](const ExpressionPtr& b) { return b ? evaluate(*b, activation) : Value(nullptr); };
        const Value of = evaluate(*e.a, activation), start = bound(e.b), stop = bound(e.c), step = bound(e.d);
        line_ = e.line;
        return slice_of(*this, of, start, stop, step);
      }
      case E::call:
        return call(e, activation);
      case E::filter:
        return filtered(e, {}, activation);
      case E::test: {
        const Value value = evaluate(*e.a, activation);
        const Arguments arguments = arguments_of(e, activation);
        line_ = e.line;
        return apply_test(*this, e.name, value, arguments);
      }
      case E::negation:
        return !truth(evaluate(*e.a, activation));
      case E::sign: {
        const Value value = evaluate(*e.a, activation);
        line_ = e.line;
        return with_sign(e.name, value);
      }
      case E::binary: {
        const Value left = evaluate(*e.a, activation), right = evaluate(*e.b, activation);
        line_ = e.line;
        return binary(*this, e.name, left, right);
      }
      case E::both: {
        Value left = evaluate(*e.a, activation);
        return truth(left) ? evaluate(*e.b, activation) : left;
      }
      case E::either: {
        Value left = evaluate(*e.a, activation);
        return truth(left) ? left : evaluate(*e.b, activation);
      }
      case E::compare:
        return compare(e, activation);
      case E::concat: {
        List parts;
        for (const auto& item : e.items) parts.push_back(evaluate(*item, activation));
        std::string text;
        for (const Value& part : parts) text += to_text(part);
        return text_value(std::move(text));
      }
      case E::conditional:
        if (truth(evaluate(*e.a, activation))) return evaluate(*e.b, activation);
        if (e.c) return evaluate(*e.c, activation);
        return undefined(fmt::format(
            "the inline if-expression on line {} evaluated to false and no else section was defined.", e.line));
    }
    return {};
  }

  const std::vector<std::pair<std::string, Value>>& variables_;
  const std::function<std::chrono::system_clock::time_point()>& now_;
  const Limits limits_;
  Rendered rendered_;
  std::string* out_ = &rendered_.text;
  std::vector<std::unique_ptr<Activation>> kept_;
  std::vector<std::weak_ptr<Namespace>> spaces_;
  int64_t steps_ = 0;
  int depth_ = 0, captures_ = 0, line_ = 1;
};

}  // namespace

Rendered render(const Template& parsed, const std::vector<std::pair<std::string, Value>>& variables,
                const std::function<std::chrono::system_clock::time_point()>& now, const Limits& limits) {
  return Renderer(variables, now, limits).run(parsed);
}

}  // namespace cairn::jinja
