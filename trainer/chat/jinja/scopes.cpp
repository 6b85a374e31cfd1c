// Where each variable lives. The rules are those of jinja2's compiler (its idtracking.py and compiler.py), since
// templates depend on them: a `set` inside `for` ends with the turn of the loop, one inside `if` does not; a scope that
// sets a name of an outer scope begins with a copy; a name that the template sets somewhere hides what the caller gave
// from the loops before; macros see the variables of the scope that they stand in, as they are at the call.
#include <fmt/format.h>

#include <list>
#include <map>
#include <optional>
#include <set>

#include "trainer/chat/jinja/error.h"
#include "trainer/chat/jinja/syntax.h"

namespace cairn::jinja {
namespace {

using E = Expression;
using S = Statement;

struct Function {
  Function* outer;
  FunctionPlan& plan;
  std::map<std::string, int> slots = {};  // by the name that the compiler would give: level and name

  int slot(const std::string& identifier) {
    const auto [at, fresh] = slots.emplace(identifier, plan.slots);
    if (fresh) ++plan.slots;
    return at->second;
  }
};

struct Reference {
  std::string identifier;
  Function* owner;
};

struct Rule {
  Load::Kind kind;
  std::string name = {};                // resolve
  std::optional<Reference> from = {};   // alias
};

struct Symbols {
  int level;
  Symbols* parent;
  Function* function;
  std::map<std::string, std::string> references = {};  // name -> identifier
  std::map<std::string, Rule> loads = {};              // by identifier
  std::set<std::string> stores = {};

  std::optional<Reference> find(const std::string& name) const {
    for (const Symbols* s = this; s; s = s->parent)
      if (const auto at = s->references.find(name); at != s->references.end()) return Reference{at->second, s->function};
    return std::nullopt;
  }
  void define(const std::string& name, Rule rule) {
    const std::string identifier = fmt::format("{}_{}", level, name);
    references[name] = identifier;
    loads[identifier] = std::move(rule);
  }
  void load(const std::string& name) {
    if (!find(name)) define(name, {.kind = Load::resolve, .name = name});
  }
  void store(const std::string& name) {
    stores.insert(name);
    if (references.count(name)) return;
    const auto outer = parent ? parent->find(name) : std::nullopt;
    define(name, outer ? Rule{.kind = Load::alias, .from = outer} : Rule{.kind = Load::clear});
  }
  void parameter(const std::string& name) {
    stores.insert(name);
    define(name, {.kind = Load::parameter});
  }
  // After the branches of an if: what only some of them set keeps its value from before in the others.
  void join(const std::vector<Symbols>& branches) {
    std::set<std::string> fresh;
    for (const Symbols& branch : branches)
      for (const std::string& name : branch.stores)
        if (!stores.count(name)) fresh.insert(name);
    for (const Symbols& branch : branches) {
      for (const auto& [name, identifier] : branch.references) references[name] = identifier;
      for (const auto& [identifier, rule] : branch.loads) loads[identifier] = rule;
      stores.insert(branch.stores.begin(), branch.stores.end());
    }
    for (const std::string& name : fresh) {
      const auto outer = parent ? parent->find(name) : std::nullopt;
      loads[find(name)->identifier] =
          outer ? Rule{.kind = Load::alias, .from = outer} : Rule{.kind = Load::resolve, .name = name};
    }
  }
};

template <class Visit>
void for_each_part(const E& e, Visit visit) {
  for (const E* part : {e.a.get(), e.b.get(), e.c.get(), e.d.get()})
    if (part) visit(*part);
  for (const auto& item : e.items) visit(*item);
  for (const auto& [key, item] : e.named) visit(*item);
}

// ---- what a scope loads and stores; scopes inside it are not entered ----

void see_loads(Symbols& symbols, const E& e) {
  if (e.kind == E::variable) symbols.load(e.name);
  for_each_part(e, [&](const E& part) { see_loads(symbols, part); });
}

void see_target(Symbols& symbols, const E& e, bool as_parameter) {
  if (e.kind == E::variable) {
    as_parameter ? symbols.parameter(e.name) : symbols.store(e.name);
  } else if (e.kind == E::space_field) {
    symbols.load(e.name);
  }
  for (const auto& item : e.items) see_target(symbols, *item, as_parameter);
}

void see(Symbols& symbols, const Body& body);

void see(Symbols& symbols, const S& s) {
  switch (s.kind) {
    case S::if_: {
      see_loads(symbols, *s.a);
      std::vector<Symbols> branches;
      for (const Body* body : {&s.body, &s.branches, &s.otherwise}) {
        branches.push_back(symbols);
        see(branches.back(), *body);
      }
      symbols.join(branches);
      break;
    }
    case S::set:
      see_loads(symbols, *s.a);
      see_target(symbols, *s.target, false);
      break;
    case S::set_block:
      see_target(symbols, *s.target, false);
      break;
    case S::macro:
      symbols.store(s.text);
      break;
    case S::with:
      for (const auto& value : s.values) see_loads(symbols, *value);
      break;
    default:
      if (s.a) see_loads(symbols, *s.a);
  }
}

void see(Symbols& symbols, const Body& body) {
  for (const auto& s : body) see(symbols, *s);
}

// ---- which special names a body uses without setting them first ----

class Undeclared {
 public:
  explicit Undeclared(std::set<std::string> names) : names_(std::move(names)) {}
  std::set<std::string> found;

  void visit(const E& e, bool target = false) {
    if (e.kind == E::variable) name(e.name, target);
    for_each_part(e, [&](const E& part) { visit(part, target); });
  }
  void visit(const Body& body) {
    for (const auto& s : body) visit(*s);
  }
  void visit(const S& s) {
    const auto maybe = [&](const ExpressionPtr& e, bool target = false) {
      if (e) visit(*e, target);
    };
    if (s.kind == S::filter_block) {
      visit(s.body);
      return maybe(s.a);
    }
    maybe(s.target, true);
    maybe(s.a);
    for (const auto& target : s.targets) visit(*target, true);
    for (const auto& value : s.values) visit(*value);
    for (const auto& p : s.parameters) name(p.name, true);
    for (const auto& p : s.parameters) maybe(p.fallback);
    visit(s.body);
    visit(s.branches);
    visit(s.otherwise);
    maybe(s.test);
  }

 private:
  void name(const std::string& name, bool target) {
    if (!target && names_.count(name)) {
      found.insert(name);
    } else {
      names_.erase(name);
    }
  }
  std::set<std::string> names_;
};

bool stores_loop(const E& target) {
  if (target.kind == E::variable) return target.name == "loop";
  for (const auto& item : target.items)
    if (stores_loop(*item)) return true;
  return false;
}

void refuse_stored_loop(const S& s) {
  if (s.target && stores_loop(*s.target))
    throw Error(Fault::syntax, "Can't assign to special loop variable in for-loop target", s.line);
  for (const Body* body : {&s.body, &s.branches, &s.otherwise})
    for (const auto& inner : *body) refuse_stored_loop(*inner);
}

// ---- places ----

class Placer {
 public:
  void run(Template& parsed) {
    Undeclared special({"self"});
    special.visit(parsed.body);
    if (special.found.count("self")) throw Error(Fault::unsupported, "the variable 'self' is not supported");
    Function function{nullptr, parsed.function};
    Symbols symbols{0, nullptr, &function};
    see(symbols, parsed.body);
    parsed.loads = loads_of(symbols);
    place(parsed.body, symbols, false);
  }

 private:
  static Place place_of(const Reference& reference, Function* from) {
    int hops = 0;
    for (; from != reference.owner; from = from->outer) ++hops;
    return {hops, reference.owner->slot(reference.identifier)};
  }

  static std::vector<Load> loads_of(const Symbols& symbols) {
    std::vector<Load> loads;
    for (const auto& [identifier, rule] : symbols.loads) {
      Load load{.kind = rule.kind, .slot = symbols.function->slot(identifier), .name = rule.name};
      if (rule.from) load.from = place_of(*rule.from, symbols.function);
      loads.push_back(std::move(load));
    }
    return loads;
  }

  static Symbols inner(Symbols& outer, Function* function = nullptr) {
    return {outer.level + 1, &outer, function ? function : outer.function};
  }

  static void place(E& e, Symbols& symbols) {
    if (e.kind == E::variable || e.kind == E::space_field) {
      const auto reference = symbols.find(e.name);
      if (!reference)
        throw Error(Fault::unsupported, fmt::format("the variable '{}' in a filter of a set block is not supported", e.name),
                    e.line);
      e.place = place_of(*reference, symbols.function);
    }
    for (E* part : {e.a.get(), e.b.get(), e.c.get(), e.d.get()})
      if (part) place(*part, symbols);
    for (const auto& item : e.items) place(*item, symbols);
    for (const auto& [key, item] : e.named) place(*item, symbols);
  }

  void place(Body& body, Symbols& symbols, bool in_loop) {
    for (const auto& s : body) place(*s, symbols, in_loop);
  }

  void place(S& s, Symbols& symbols, bool in_loop) {
    switch (s.kind) {
      case S::data:
        break;
      case S::output:
        place(*s.a, symbols);
        break;
      case S::set:
        place(*s.a, symbols);
        place(*s.target, symbols);
        break;
      case S::if_:
        place(*s.a, symbols);
        place(s.body, symbols, in_loop);
        place(s.branches, symbols, in_loop);
        place(s.otherwise, symbols, in_loop);
        break;
      case S::set_block:
      case S::filter_block: {
        Symbols inside = inner(symbols);
        see(inside, s.body);
        if (s.kind == S::filter_block) see_loads(inside, *s.a);
        s.loads = loads_of(inside);
        place(s.body, inside, in_loop);
        if (s.a) place(*s.a, inside);
        if (s.target) place(*s.target, symbols);
        break;
      }
      case S::with: {
        Symbols inside = inner(symbols);
        for (const auto& target : s.targets) see_target(inside, *target, true);
        see(inside, s.body);
        s.loads = loads_of(inside);
        for (const auto& value : s.values) place(*value, symbols);
        for (const auto& target : s.targets) place(*target, inside);
        place(s.body, inside, in_loop);
        break;
      }
      case S::for_:
        place_for(s, symbols, in_loop);
        break;
      case S::macro:
        place_function(s, symbols);
        s.place = place_of(*symbols.find(s.text), symbols.function);
        break;
      case S::call_block:
        place_function(s, symbols);
        place(*s.a, symbols);
        break;
      case S::generation:
        place_function(s, symbols);
        break;
      case S::break_:
      case S::continue_:
        if (!in_loop)
          throw Error(Fault::syntax, fmt::format("'{}' outside loop", s.kind == S::break_ ? "break" : "continue"), s.line);
    }
  }

  void place_for(S& s, Symbols& symbols, bool in_loop) {
    refuse_stored_loop(s);
    Symbols inside = inner(symbols), instead = inner(symbols);
    Undeclared special({"loop"});
    special.visit(s.body);
    if (special.found.count("loop")) inside.parameter("loop");
    see_target(inside, *s.target, true);
    see(inside, s.body);
    see(instead, s.otherwise);
    if (s.test) {
      symbols.function->plan.makes_functions = true;  // `loop` may be kept, and asks the filter later
      Function function{symbols.function, s.test_function};
      Symbols filter = inner(symbols, &function);
      see_target(filter, *s.test_target, true);
      see_loads(filter, *s.test);
      s.test_loads = loads_of(filter);
      place(*s.test_target, filter);
      place(*s.test, filter);
    }
    place(*s.a, symbols);
    s.loads = loads_of(inside);
    s.otherwise_loads = loads_of(instead);
    if (special.found.count("loop")) s.loop_slot = place_of(*inside.find("loop"), inside.function).slot;
    place(*s.target, inside);
    place(s.body, inside, true);
    place(s.otherwise, instead, in_loop);
  }

  // A macro, or a body that is called.
  void place_function(S& s, Symbols& symbols) {
    symbols.function->plan.makes_functions = true;
    Function function{symbols.function, s.function};
    Symbols inside = inner(symbols, &function);
    std::set<std::string> named;
    for (const auto& p : s.parameters) {
      inside.parameter(p.name);
      named.insert(p.name);
    }
    for (const auto& p : s.parameters)
      if (p.fallback) see_loads(inside, *p.fallback);
    see(inside, s.body);
    Undeclared special({"caller", "kwargs", "varargs"});
    special.visit(s.body);
    s.explicit_caller = named.count("caller");
    for (const auto& p : s.parameters)
      if (p.name == "caller" && !p.fallback && special.found.count("caller"))
        throw Error(Fault::syntax,
                    "When defining macros or call blocks the special \"caller\" argument must be omitted or be given a "
                    "default.",
                    s.line);
    for (const auto& [name, slot] : {std::pair{"caller", &s.caller_slot}, {"kwargs", &s.kwargs_slot}, {"varargs", &s.varargs_slot}}) {
      if (!special.found.count(name) || named.count(name)) continue;
      inside.parameter(name);
      *slot = function.slot(inside.references.at(name));
    }
    s.loads = loads_of(inside);
    for (auto& p : s.parameters) {
      p.slot = function.slot(inside.references.at(p.name));
      if (p.fallback) place(*p.fallback, inside);
    }
    place(s.body, inside, false);
  }
};

}  // namespace

void place_variables(Template& parsed) { Placer().run(parsed); }

}  // namespace cairn::jinja
