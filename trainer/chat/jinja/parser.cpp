// jinja2's grammar, by recursive descent.
#include <fmt/format.h>

#include <algorithm>

#include "trainer/chat/jinja/builtins.h"
#include "trainer/chat/jinja/lexer.h"
#include "trainer/chat/jinja/syntax.h"
#include "trainer/chat/jinja/text.h"

namespace cairn::jinja {
namespace {

using E = Expression;
using S = Statement;
constexpr int kDeepestTree = 800, kDeepestNesting = 500;

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(tokenize(source)) {}

  Template run() {
    Template parsed;
    parsed.body = body({});
    parsed.has_generation = has_generation_;
    return parsed;
  }

 private:
  // ---- tokens ----
  const Token& now() const { return tokens_[at_]; }
  const Token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  Token next() {
    const Token token = now();
    if (token.kind != Token::end) ++at_;
    return token;
  }
  bool skip_sign(std::string_view s) { return now().is_sign(s) && (next(), true); }
  bool skip_name(std::string_view s) { return now().is_name(s) && (next(), true); }

  static std::string describe(const Token& token) {
    switch (token.kind) {
      case Token::data:
        return "template data / text";
      case Token::block_begin:
        return "begin of statement block";
      case Token::block_end:
        return "end of statement block";
      case Token::variable_begin:
        return "begin of print statement";
      case Token::variable_end:
        return "end of print statement";
      case Token::text:
        return "string";
      case Token::number:
        return token.value.is(Type::real) ? "float" : "integer";
      case Token::end:
        return "end of template";
      default:
        return token.text_of;
    }
  }
  [[noreturn]] void refuse(const std::string& message, int line = 0) const {
    throw Error(Fault::syntax, message, line ? line : now().line);
  }
  [[noreturn]] void lacks(const std::string& what, int line) const {
    throw Error(Fault::unsupported, what + " is not supported", line);
  }
  [[noreturn]] void expected(std::string_view what) const {
    if (now().kind == Token::end) refuse(fmt::format("unexpected end of template, expected '{}'.", what));
    refuse(fmt::format("expected token '{}', got {}", what, repr(describe(now()))));
  }
  Token expect_sign(std::string_view s) { return now().is_sign(s) ? next() : (expected(s), Token{}); }
  Token expect_name() { return now().kind == Token::name ? next() : (expected("name"), Token{}); }
  Token expect_word(std::string_view s) { return now().is_name(s) ? next() : (expected(s), Token{}); }
  Token expect(Token::Kind kind, std::string_view what) { return now().kind == kind ? next() : (expected(what), Token{}); }

  struct Nest {
    explicit Nest(Parser& p) : parser(p) {
      if (++parser.nesting_ > kDeepestNesting) throw Error(Fault::limit, "it nests too deeply", parser.now().line);
    }
    ~Nest() { --parser.nesting_; }
    Parser& parser;
  };

  ExpressionPtr make(E::Kind kind, int line, ExpressionPtr a = {}, ExpressionPtr b = {}, ExpressionPtr c = {}) const {
    auto e = std::make_unique<E>(E{.kind = kind, .line = line, .a = std::move(a), .b = std::move(b), .c = std::move(c)});
    measure(*e);
    return e;
  }
  void measure(E& e) const {
    int deepest = 0;
    for (const E* part : {e.a.get(), e.b.get(), e.c.get(), e.d.get()}) deepest = std::max(deepest, part ? part->depth : 0);
    for (const auto& item : e.items) deepest = std::max(deepest, item->depth);
    for (const auto& [key, item] : e.named) deepest = std::max(deepest, item->depth);
    e.depth = deepest + 1;
    if (e.depth > kDeepestTree) throw Error(Fault::limit, "it nests too deeply", e.line);
  }

  // ---- statements ----
  Body body(const std::vector<std::string_view>& ends) {
    const Nest nest(*this);
    Body out;
    while (now().kind != Token::end) {
      const Token token = now();
      if (token.kind == Token::data) {
        out.push_back(std::make_unique<S>(S{.kind = S::data, .line = token.line, .text = token.text_of}));
        next();
      } else if (token.kind == Token::variable_begin) {
        next();
        out.push_back(std::make_unique<S>(S{.kind = S::output, .line = token.line, .a = tuple_or_expression()}));
        expect(Token::variable_end, "end of print statement");
      } else {
        next();
        if (std::any_of(ends.begin(), ends.end(), [&](auto end) { return now().is_name(end); })) return out;
        statement(out, ends);
        expect(Token::block_end, "end of statement block");
      }
    }
    if (!ends.empty())
      refuse(fmt::format("Unexpected end of template. Jinja was looking for the following tags: '{}'.",
                         fmt::join(ends, "' or '")));
    return out;
  }

  // The body of a statement whose head was just read, up to one of ENDS, whose name is not read yet.
  Body block(const std::vector<std::string_view>& ends) {
    skip_sign(":");
    expect(Token::block_end, "end of statement block");
    return body(ends);
  }
  Body block_and_end(std::string_view end) {
    Body out = block({end});
    next();
    return out;
  }

  void statement(Body& out, const std::vector<std::string_view>& ends) {
    if (now().kind != Token::name) refuse("tag name expected");
    const Token tag = now();
    using Method = void (Parser::*)(S&);
    struct Entry {
      std::string_view name;
      S::Kind kind;
      Method read;
    };
    static constexpr Entry kStatements[] = {
        {"for", S::for_, &Parser::read_for},
        {"if", S::if_, &Parser::read_if},
        {"set", S::set, &Parser::read_set},
        {"macro", S::macro, &Parser::read_macro},
        {"call", S::call_block, &Parser::read_call},
        {"filter", S::filter_block, &Parser::read_filter_block},
        {"with", S::with, &Parser::read_with},
        {"generation", S::generation, &Parser::read_generation},
        {"break", S::break_, &Parser::read_nothing},
        {"continue", S::continue_, &Parser::read_nothing},
    };
    for (const Entry& entry : kStatements) {
      if (tag.text_of != entry.name) continue;
      next();
      auto s = std::make_unique<S>(S{.kind = entry.kind, .line = tag.line});
      (this->*entry.read)(*s);
      out.push_back(std::move(s));
      return;
    }
    if (tag.text_of == "print") {
      next();
      for (bool first = true; now().kind != Token::block_end; first = false) {
        if (!first) expect_sign(",");
        out.push_back(std::make_unique<S>(S{.kind = S::output, .line = tag.line, .a = expression()}));
      }
      return;
    }
    for (const char* name : {"block", "extends", "include", "import", "from", "autoescape"})
      if (tag.text_of == name) lacks(fmt::format("the tag '{}'", name), tag.line);
    refuse(fmt::format("Encountered unknown tag {}.{}", repr(tag.text_of),
                       ends.empty() ? ""
                                    : fmt::format(" Jinja was looking for the following tags: '{}'.", fmt::join(ends, "' or '"))));
  }

  void read_nothing(S&) {}

  void read_generation(S& s) {
    has_generation_ = true;
    s.body = block_and_end("endgeneration");
  }

  void read_for(S& s) {
    s.target = target("in");
    expect_word("in");
    s.a = tuple_or_expression(false, "recursive");
    if (skip_name("if")) {
      s.test = expression();
      s.test_target = copy_of(*s.target);
    }
    if (now().is_name("recursive")) lacks("a recursive for", now().line);
    s.body = block({"endfor", "else"});
    if (next().text_of == "else") s.otherwise = block_and_end("endfor");
  }

  void read_if(S& s) {
    S* branch = &s;
    while (true) {
      branch->a = tuple_or_expression(false);
      branch->body = block({"elif", "else", "endif"});
      const Token end = next();
      if (end.text_of == "elif") {
        s.branches.push_back(std::make_unique<S>(S{.kind = S::if_, .line = now().line}));
        branch = s.branches.back().get();
        continue;
      }
      if (end.text_of == "else") s.otherwise = block_and_end("endif");
      return;
    }
  }

  void read_set(S& s) {
    s.target = target({}, true);
    if (skip_sign("=")) {
      s.a = tuple_or_expression();
      return;
    }
    s.kind = S::set_block;
    s.a = filters(nullptr, false);
    s.body = block_and_end("endset");
  }

  void read_signature(S& s) {
    expect_sign("(");
    while (!now().is_sign(")")) {
      if (!s.parameters.empty()) expect_sign(",");
      S::Parameter parameter{.name = expect_name().text_of};
      if (skip_sign("=")) {
        parameter.fallback = expression();
      } else if (!s.parameters.empty() && s.parameters.back().fallback) {
        refuse("non-default argument follows default argument");
      }
      s.parameters.push_back(std::move(parameter));
    }
    expect_sign(")");
  }

  void read_macro(S& s) {
    s.text = expect_name().text_of;
    read_signature(s);
    s.body = block_and_end("endmacro");
  }

  void read_call(S& s) {
    if (now().is_sign("(")) read_signature(s);
    s.a = expression();
    if (s.a->kind != E::call) refuse("expected call", s.line);
    s.body = block_and_end("endcall");
  }

  void read_filter_block(S& s) {
    s.a = filters(nullptr, true);
    s.body = block_and_end("endfilter");
  }

  void read_with(S& s) {
    while (now().kind != Token::block_end) {
      if (!s.targets.empty()) expect_sign(",");
      s.targets.push_back(target({}));
      expect_sign("=");
      s.values.push_back(expression());
    }
    s.body = block_and_end("endwith");
  }

  // A name, a tuple of names; `fields`: namespace attributes too. It ends before the word END.
  ExpressionPtr target(std::string_view end, bool fields = false) {
    const int line = now().line;
    const auto is_end = [&] {
      const Token& t = now();
      return t.kind == Token::variable_end || t.kind == Token::block_end || t.is_sign(")") || (!end.empty() && t.is_name(end));
    };
    const auto one = [&]() -> ExpressionPtr {
      auto e = primary(fields);
      check_target(*e);
      return e;
    };
    std::vector<ExpressionPtr> parts;
    bool is_tuple = false;
    while (true) {
      if (!parts.empty()) expect_sign(",");
      if (is_end()) break;
      parts.push_back(one());
      if (!now().is_sign(",")) break;
      is_tuple = true;
    }
    if (!is_tuple && !parts.empty()) return std::move(parts[0]);
    if (!is_tuple) refuse(fmt::format("Expected an expression, got {}", repr(describe(now()))));
    auto e = make(E::tuple, line);
    e->items = std::move(parts);
    return e;
  }

  void check_target(const E& e) const {
    static constexpr std::string_view kReserved[] = {"true", "false", "none", "True", "False", "None"};
    if (e.kind == E::variable || e.kind == E::space_field) {
      if (std::find(std::begin(kReserved), std::end(kReserved), e.name) == std::end(kReserved)) return;
    } else if (e.kind == E::tuple) {
      for (const auto& item : e.items) check_target(*item);
      return;
    }
    refuse("can't assign to this", e.line);
  }

  static ExpressionPtr copy_of(const E& e) {  // of a target
    auto copy = std::make_unique<E>(E{.kind = e.kind, .line = e.line, .name = e.name, .text = e.text});
    for (const auto& item : e.items) copy->items.push_back(copy_of(*item));
    return copy;
  }

  // ---- expressions ----
  ExpressionPtr expression(bool with_condition = true) {
    const Nest nest(*this);
    return with_condition ? conditional() : either();
  }

  ExpressionPtr tuple_or_expression(bool with_condition = true, std::string_view end = {}, bool in_parentheses = false) {
    const int line = now().line;
    std::vector<ExpressionPtr> parts;
    bool is_tuple = false;
    while (true) {
      if (!parts.empty()) expect_sign(",");
      const Token& t = now();
      if (t.kind == Token::variable_end || t.kind == Token::block_end || t.is_sign(")") || (!end.empty() && t.is_name(end)))
        break;
      parts.push_back(expression(with_condition));
      if (!now().is_sign(",")) break;
      is_tuple = true;
    }
    if (!is_tuple && !parts.empty()) return std::move(parts[0]);
    if (!is_tuple && !in_parentheses) refuse(fmt::format("Expected an expression, got {}", repr(describe(now()))));
    auto e = make(E::tuple, line);
    e->items = std::move(parts);
    measure(*e);
    return e;
  }

  ExpressionPtr conditional() {
    const int line = now().line;
    auto value = either();
    while (skip_name("if")) {
      auto test = either();
      auto other = skip_name("else") ? expression() : ExpressionPtr();
      value = make(E::conditional, line, std::move(test), std::move(value), std::move(other));
    }
    return value;
  }

  ExpressionPtr either() {
    auto left = both();
    while (now().is_name("or")) {
      const int line = next().line;
      left = make(E::either, line, std::move(left), both());
    }
    return left;
  }

  ExpressionPtr both() {
    auto left = negation();
    while (now().is_name("and")) {
      const int line = next().line;
      left = make(E::both, line, std::move(left), negation());
    }
    return left;
  }

  ExpressionPtr negation() {
    const Nest nest(*this);
    if (now().is_name("not")) {
      const int line = next().line;
      return make(E::negation, line, negation());
    }
    return comparison();
  }

  ExpressionPtr comparison() {
    const int line = now().line;
    auto left = sum();
    auto e = make(E::compare, line);
    while (true) {
      if (now().kind == Token::sign && (now().text_of == "==" || now().text_of == "!=" || now().text_of == "<" ||
                                        now().text_of == "<=" || now().text_of == ">" || now().text_of == ">=")) {
        e->operators.push_back(next().text_of);
      } else if (skip_name("in")) {
        e->operators.push_back("in");
      } else if (now().is_name("not") && ahead().is_name("in")) {
        next(), next();
        e->operators.push_back("notin");
      } else {
        break;
      }
      e->items.push_back(sum());
    }
    if (e->items.empty()) return left;
    e->a = std::move(left);
    measure(*e);
    return e;
  }

  template <class Part>
  ExpressionPtr chain(std::initializer_list<std::string_view> signs, Part part) {
    auto left = part();
    while (std::any_of(signs.begin(), signs.end(), [&](auto s) { return now().is_sign(s); })) {
      const Token op = next();
      left = make(E::binary, op.line, std::move(left), part());
      left->name = op.text_of;
    }
    return left;
  }
  ExpressionPtr sum() {
    return chain({"+", "-"}, [&] { return concat(); });
  }
  ExpressionPtr concat() {
    const int line = now().line;
    std::vector<ExpressionPtr> parts;
    parts.push_back(product());
    while (skip_sign("~")) parts.push_back(product());
    if (parts.size() == 1) return std::move(parts[0]);
    auto e = make(E::concat, line);
    e->items = std::move(parts);
    measure(*e);
    return e;
  }
  ExpressionPtr product() {
    return chain({"*", "/", "//", "%"}, [&] { return chain({"**"}, [&] { return signed_value(); }); });
  }

  ExpressionPtr signed_value(bool with_filters = true) {
    const Nest nest(*this);
    ExpressionPtr e;
    if (now().is_sign("-") || now().is_sign("+")) {
      const Token op = next();
      e = make(E::sign, op.line, signed_value(false));
      e->name = op.text_of;
    } else {
      e = primary(false);
    }
    e = postfix(std::move(e));
    return with_filters ? filters_and_tests(std::move(e)) : std::move(e);
  }

  ExpressionPtr constant(Value value, int line) const {
    auto e = make(E::constant, line);
    e->value = std::move(value);
    return e;
  }

  ExpressionPtr primary(bool fields) {
    const Token token = now();
    if (token.kind == Token::name) {
      next();
      const std::string& n = token.text_of;
      if (n == "true" || n == "True") return constant(true, token.line);
      if (n == "false" || n == "False") return constant(false, token.line);
      if (n == "none" || n == "None") return constant(nullptr, token.line);
      const bool is_field = fields && skip_sign(".");
      auto e = make(is_field ? E::space_field : E::variable, token.line);
      e->name = n;
      if (is_field) e->text = expect_name().text_of;
      return e;
    }
    if (token.kind == Token::text) {
      std::string text;
      while (now().kind == Token::text) text += next().text_of;
      return constant(std::move(text), token.line);
    }
    if (token.kind == Token::number) return constant(next().value, token.line);
    if (token.is_sign("(")) {
      next();
      const Nest nest(*this);
      auto e = tuple_or_expression(true, {}, true);
      expect_sign(")");
      return e;
    }
    if (token.is_sign("[")) return sequence(E::list, "]");
    if (token.is_sign("{")) return sequence(E::dict, "}");
    refuse(fmt::format("unexpected {}", repr(describe(token))));
  }

  ExpressionPtr sequence(E::Kind kind, std::string_view end) {
    auto e = make(kind, next().line);
    while (!now().is_sign(end)) {
      if (!e->items.empty()) expect_sign(",");
      if (now().is_sign(end)) break;
      e->items.push_back(expression());
      if (kind == E::dict) {
        expect_sign(":");
        e->items.push_back(expression());
      }
    }
    expect_sign(end);
    measure(*e);
    return e;
  }

  ExpressionPtr postfix(ExpressionPtr e) {
    while (true) {
      if (now().is_sign(".")) {
        const int line = next().line;
        const Token field = next();
        if (field.kind == Token::name) {
          e = make(E::attribute, line, std::move(e));
          e->name = field.text_of;
        } else if (field.kind == Token::number && field.value.is(Type::integer)) {
          e = make(E::item, line, std::move(e), constant(field.value, line));
        } else {
          refuse("expected name or number", field.line);
        }
      } else if (now().is_sign("[")) {
        e = subscript(std::move(e));
      } else if (now().is_sign("(")) {
        e = call(std::move(e));
      } else {
        return e;
      }
    }
  }

  ExpressionPtr subscript(ExpressionPtr of) {
    const int line = next().line;
    std::vector<ExpressionPtr> parts;
    bool sliced = false;
    ExpressionPtr bounds[3];
    while (!now().is_sign("]")) {
      if (!parts.empty() || sliced) expect_sign(",");
      if (sliced) lacks("a slice among several subscripts", line);
      if (!now().is_sign(":")) {
        auto e = expression();
        if (!now().is_sign(":")) {
          parts.push_back(std::move(e));
          continue;
        }
        bounds[0] = std::move(e);
      }
      if (!parts.empty()) lacks("a slice among several subscripts", line);
      sliced = true;
      next();  // the first colon
      const auto bound_follows = [&] { return !now().is_sign("]") && !now().is_sign(","); };
      if (bound_follows() && !now().is_sign(":")) bounds[1] = expression();
      if (skip_sign(":") && bound_follows()) bounds[2] = expression();
    }
    expect_sign("]");
    if (sliced) {
      auto e = make(E::slice, line, std::move(of), std::move(bounds[0]), std::move(bounds[1]));
      e->d = std::move(bounds[2]);
      measure(*e);
      return e;
    }
    if (parts.size() == 1) return make(E::item, line, std::move(of), std::move(parts[0]));
    auto key = make(E::tuple, line);
    key->items = std::move(parts);
    measure(*key);
    return make(E::item, line, std::move(of), std::move(key));
  }

  // The arguments in parentheses, into E.
  void arguments(E& e) {
    const int line = expect_sign("(").line;
    const auto ensure = [&](bool valid) {
      if (!valid) refuse("invalid syntax for function call expression", line);
    };
    for (bool first = true; !now().is_sign(")"); first = false) {
      if (!first) {
        expect_sign(",");
        if (now().is_sign(")")) break;
      }
      if (skip_sign("*")) {
        ensure(!e.b && !e.c);
        e.b = expression();
      } else if (skip_sign("**")) {
        ensure(!e.c);
        e.c = expression();
      } else if (now().kind == Token::name && ahead().is_sign("=")) {
        ensure(!e.c);
        std::string key = next().text_of;
        next();
        for (const auto& [other, value] : e.named)
          if (other == key) refuse("keyword argument repeated: " + key, line);
        e.named.emplace_back(std::move(key), expression());
      } else {
        ensure(!e.b && !e.c && e.named.empty());
        e.items.push_back(expression());
      }
    }
    expect_sign(")");
    measure(e);
  }

  ExpressionPtr call(ExpressionPtr of) {
    auto e = make(E::call, now().line, std::move(of));
    arguments(*e);
    return e;
  }

  std::string dotted_name() {
    std::string name = expect_name().text_of;
    while (skip_sign(".")) name += "." + expect_name().text_of;
    return name;
  }

  // `| name(...)`, any number of them; START: the first one has no bar.
  ExpressionPtr filters(ExpressionPtr of, bool start) {
    while (start || now().is_sign("|")) {
      if (!start) next();
      start = false;
      auto e = make(E::filter, now().line, std::move(of));
      e->name = dotted_name();
      switch (filter_standing(e->name)) {
        case Standing::known:
          break;
        case Standing::lacking:
          lacks(fmt::format("the filter '{}'", e->name), e->line);
        case Standing::unknown:
          refuse(fmt::format("No filter named {}.", repr(e->name)), e->line);
      }
      if (now().is_sign("(")) arguments(*e);
      of = std::move(e);
    }
    return of;
  }

  ExpressionPtr filters_and_tests(ExpressionPtr e) {
    while (true) {
      if (now().is_sign("|")) {
        e = filters(std::move(e), false);
      } else if (now().is_name("is")) {
        e = test(std::move(e));
      } else if (now().is_sign("(")) {
        e = call(std::move(e));
      } else {
        return e;
      }
    }
  }

  ExpressionPtr test(ExpressionPtr of) {
    const int line = next().line;
    const bool negated = skip_name("not");
    auto e = make(E::test, line, std::move(of));
    e->name = dotted_name();
    if (!is_test(e->name)) refuse(fmt::format("No test named {}.", repr(e->name)), line);
    const Token& t = now();
    if (t.is_sign("(")) {
      arguments(*e);
    } else if ((t.kind == Token::name && !t.is_name("else") && !t.is_name("or") && !t.is_name("and")) ||
               t.kind == Token::text || t.kind == Token::number || t.is_sign("[") || t.is_sign("{")) {
      if (t.is_name("is")) refuse("You cannot chain multiple tests with is");
      e->items.push_back(postfix(primary(false)));
      measure(*e);
    }
    return negated ? make(E::negation, line, std::move(e)) : std::move(e);
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int nesting_ = 0;
  bool has_generation_ = false;
};

}  // namespace

Template parse(std::string_view source) { return Parser(source).run(); }

}  // namespace cairn::jinja
