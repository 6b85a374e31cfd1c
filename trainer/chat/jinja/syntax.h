// A template as a tree. parse() makes it, place_variables() says where each variable lives, renderer.h walks it.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "trainer/chat/jinja/value.h"

namespace cairn::jinja {

struct Expression;
struct Statement;
using ExpressionPtr = std::unique_ptr<Expression>;
using Body = std::vector<std::unique_ptr<Statement>>;

// A variable: how many functions out (a macro is one), and which of that function's variables.
struct Place {
  int hops = 0, slot = -1;
};

struct Expression {
  enum Kind {
    constant,     // value
    variable,     // name, place
    space_field,  // name.text, as the target of a set; place
    tuple,        // items
    list,         // items
    dict,         // items: key, value, key, value ...
    attribute,    // a.name
    item,         // a[b]
    slice,        // a[b:c:d]; each of b, c, d may be null
    call,         // a(items, named, *b, **c)
    filter,       // a | name(items, named, *b, **c); a is null at the head of a filter block
    test,         // a is name(items, named, *b, **c)
    negation,     // not a
    sign,         // name is + or -; a
    binary,       // name is the operator; a, b
    both,         // a and b
    either,       // a or b
    compare,      // a, then items[i] by the operator operators[i]: == != < <= > >= in notin
    concat,       // items joined by ~
    conditional,  // b if a else c; c may be null
  } kind;
  int line = 1;
  std::string name = {}, text = {};
  Value value = {};
  ExpressionPtr a = {}, b = {}, c = {}, d = {};
  std::vector<ExpressionPtr> items = {};
  std::vector<std::pair<std::string, ExpressionPtr>> named = {};
  std::vector<std::string> operators = {};
  Place place = {};
  int depth = 1;  // of the tree below
};

// What happens to a variable where a scope is entered.
struct Load {
  enum Kind { parameter, resolve, alias, clear } kind;  // parameter: whoever enters gives it
  int slot;                                             // of the function that runs
  std::string name = {};  // resolve: of the variables that the caller gives
  Place from = {};        // alias
};

// The variables of a function: the template itself, a macro, a body that is called, the filter of a for statement.
struct FunctionPlan {
  int slots = 0;
  bool makes_functions = false;  // functions made inside may outlive it
};

struct Statement {
  enum Kind {
    data,          // text
    output,        // a
    set,           // target = a
    set_block,     // target = body, through the filters in a (may be null)
    if_,           // a, body; branches: elif, each an if_ without branches; otherwise
    for_,          // target, a; body; filter: test (may be null); otherwise
    macro,         // text(parameters) body
    call_block,    // a is a call; parameters, body
    generation,    // body: what the assistant says
    filter_block,  // a: filters; body
    with,          // targets = values; body
    break_,
    continue_,
  } kind;
  int line = 1;
  std::string text = {};
  ExpressionPtr target = {}, a = {}, test = {}, test_target = {};
  std::vector<ExpressionPtr> targets = {}, values = {};
  Body body = {}, branches = {}, otherwise = {};

  struct Parameter {
    std::string name;
    ExpressionPtr fallback;  // null: none
    int slot = -1;
  };
  std::vector<Parameter> parameters = {};

  // Filled by place_variables().
  Place place = {};               // macro: the variable that holds it
  int loop_slot = -1;             // for_: `loop`, where the body speaks of it
  int caller_slot = -1, kwargs_slot = -1, varargs_slot = -1;  // of a macro or a call block
  bool explicit_caller = false;   // a parameter of that name
  std::vector<Load> loads = {}, otherwise_loads = {}, test_loads = {};
  FunctionPlan function = {}, test_function = {};
};

struct Template {
  Body body;
  std::vector<Load> loads;
  FunctionPlan function;
  bool has_generation = false;
};

// Throws Error with its line: syntax, or unsupported for what Jinja has and this engine lacks, by name.
Template parse(std::string_view source);
// Gives every variable its place, as jinja2's compiler does.
void place_variables(Template& parsed);

}  // namespace cairn::jinja
