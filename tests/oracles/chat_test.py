"""Chat templates: Cairn's prompts against those of transformers, byte for byte; refusals too.

usage: chat_test.py CAIRN_PROGRAM     (CAIRN_TEST_DATA: the folder of test data; without it only what needs none)
"""
import importlib.util
import json
import os
import random
import sys
from pathlib import Path

try:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
except ImportError:
    print("transformers is not installed")
    sys.exit(77)

from harness import cairn, main, run_file, text, workspace

DATA = Path(os.environ["CAIRN_TEST_DATA"]) if os.environ.get("CAIRN_TEST_DATA") else None
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
FUZZ = int(os.environ.get("CAIRN_FUZZ", "6000"))

# A template in the manner of many small models: a default system message, roles between marks.
SMALL = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a small model named Pebble<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

# What the assistant says is marked; macros, namespaces, whitespace in every manner.
MARKED = """{#- a comment -#}
{%- set ns = namespace(turns=0, last='') %}
{%- macro head(role, closed=false) -%}
    <|{{ role }}|>{% if closed %}!{% endif %}
{%- endmacro %}
{{- bos_token }}
{% for message in messages if message.role != 'hidden' %}
    {%- set ns.turns = ns.turns + 1 %}
  {%- if message.role == 'assistant' %}
{{ head('assistant') }}
    {% generation %}
{{ message.content | default('', true) | trim }}{{ eos_token }}
    {%- endgeneration %}
  {% else %}
   {{ head(message.role, closed=not loop.last) }}: {{ message['content'] }}
  {% endif %}
{% else %}
none
{% endfor %}
{%- if add_generation_prompt %}{{ head('assistant') }}{% endif %} {{ ns.turns }}
"""


def peer_tokenizer(template):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>")), **TOKENS)
    tokenizer.chat_template = template
    return tokenizer


_peers = {}


def peer(request):
    """What transformers answers: {"text", "assistant"} or {"error"}."""
    request = dict(request)
    template = request.pop("chat_template")
    if len(_peers) > 200:
        _peers.clear()
    tokenizer = _peers.setdefault(template, None) or peer_tokenizer(template)
    _peers[template] = tokenizer
    variables = request.pop("variables", {})
    messages = request.pop("messages")
    try:
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, **request, **variables)
    except Exception as error:  # noqa: BLE001: whatever stops it
        return {"error": str(error), "type": type(error).__name__}
    return {"text": rendered}


def spans(request):
    """Bytes of what {% generation %} marks, as transformers finds it for its mask."""
    from transformers.utils.chat_template_utils import render_jinja_template
    messages = [{k: v for k, v in m.items() if v is not None} for m in request["messages"]]
    (rendered,), (found,) = render_jinja_template(
        [messages], tools=request.get("tools"), chat_template=request["chat_template"], return_assistant_tokens_mask=True,
        add_generation_prompt=request.get("add_generation_prompt", False), **{**TOKENS, **request.get("variables", {})})
    return [[len(rendered[:begin].encode()), len(rendered[:end].encode())] for begin, end in found]


def model_folder(folder, template=None, **config):
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump({"model_type": "llama"}, file)
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as file:
        json.dump({**TOKENS, "added_tokens_decoder": {}, **config}, file)
    if template is not None:
        with open(os.path.join(folder, "chat_template.jinja"), "w") as file:
            file.write(template)
    return folder


def ours(requests):
    with workspace() as folder:
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in requests)
        done = cairn("chat", model_folder(folder), "--render", "--json", check=False, input=lines)
    answers = [json.loads(line) for line in done.stdout.split("\n") if line]
    assert len(answers) == len(requests), (done.returncode, len(answers), len(requests), done.stderr[-2000:])
    assert done.returncode == int(any("error" in a for a in answers)), done.returncode
    return answers


def compare(requests, may_lack=False):
    """Every answer equal, or refused by both, with the template's own words where it raised. Returns the counts."""
    equal = refused = lacking = 0
    for request, got in zip(requests, ours(requests)):
        expected = peer(request)
        shown = {k: v for k, v in request.items() if k != "messages" or not may_lack}
        if "error" in got:
            reason, message = got["error"]["reason"], got["error"]["message"]
            if may_lack and reason in ("unsupported", "limit"):
                assert message, request
                lacking += 1
                continue
            assert reason in ("raised", "failed", "syntax", "input"), (shown, got)
            assert "error" in expected, (shown, got, expected)
            if expected["type"] == "TemplateError":
                assert reason == "raised" and message == expected["error"], (shown, got, expected)
            elif expected["type"] == "UndefinedError" and not may_lack:
                assert message == expected["error"], (shown, got, expected)
            refused += 1
        else:
            assert "error" not in expected, (shown, got, expected)
            assert got["text"] == expected["text"], (shown, got["text"], expected["text"])
            if "endgeneration" in request["chat_template"]:
                assert got["assistant"] == spans(request), (shown, got["assistant"], spans(request))
            equal += 1
    return equal, refused, lacking


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def system(content):
    return {"role": "system", "content": content}


def call(name, arguments, identifier="abcdefghi"):
    return {"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(content, identifier="abcdefghi"):
    return {"role": "tool", "name": "weather", "tool_call_id": identifier, "content": content}


TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Weather \"now\" in <b>Köln</b> & 'round' it", "parameters": {
        "type": "object", "required": ["city"], "properties": {
            "city": {"type": "string", "description": "a place", "enum": ["Köln", "東京"]},
            "days": {"type": ["integer", "null"], "default": 1.5, "minimum": -3, "maximum": 1e16, "nullable": True}}}}},
    {"type": "function", "function": {"name": "nothing", "description": "", "parameters": {"type": "object", "properties": {}}}},
]
ASKED = {"role": "assistant", "tool_calls": [call("weather", {"city": "Köln", "days": 3, "deep": {"x": [1, 2.5, None, True]}})]}
TWICE = assistant("I look.", tool_calls=[call("weather", {"city": "東京"}), call("nothing", {}, "jklmnopqr")])
TEXTUAL = assistant(None, tool_calls=[call("weather", "{\"city\": \"Rom\"}")])
CONVERSATIONS = [
    [user("Hi")],
    [system("Be  kind. \n"), user(" Hello there \n\n")],
    [user("a"), assistant("b"), user("c")],
    [system("S"), user("a"), assistant(" b "), user("c"), assistant("d\n")],
    [user("")], [user("x"), assistant("")], [assistant("first")], [system("only")], [user("a"), user("b")],
    [system("x"), system("y"), user("z")],
    [user("🙂 naïve e\u0301 \u2003"), assistant("<think>\nhm\n</think>\n\nyes"), user("\u00a0more \u3000")],
    [user("w?"), ASKED, result("sunny ☀ 20°")],
    [user("w?"), ASKED, result("sunny"), assistant("It is sunny."), user("thanks")],
    [user("w?"), TWICE, result("a"), result("{\"ok\": true}", "jklmnopqr"), assistant("done")],
    [user("w?"), TEXTUAL, result("x")], [user("q"), assistant("x", tool_calls=[])],
    [user("q"), ASKED, result({"t": [1, "é"]}), {"role": "ipython", "content": "out"}],
    [user([{"type": "text", "text": "part"}])], [{"role": "weird", "content": "?"}], [{"role": "user"}], [user(5)],
    [user("q"), assistant("a", reasoning_content="thought"), user("r")], [user("q"), assistant("a", thinking="thought")],
    [{"role": "developer", "content": "d"}, user("q")], [user(f"turn {i}") if i % 2 == 0 else assistant(f"answer {i}") for i in range(41)],
]


def requests_of(template):
    for messages in CONVERSATIONS:
        for tools in (None, TOOLS):
            for prompt in (False, True):
                for variables in ({}, {"tools_in_user_message": False, "date_string": "1 May 2025", "enable_thinking": False}):
                    request = {"chat_template": template, "messages": messages, "add_generation_prompt": prompt, "variables": variables}
                    yield {**request, "tools": tools} if tools else request
    for messages in CONVERSATIONS:
        yield {"chat_template": template, "messages": messages, "continue_final_message": True}


def test_templates_of_models():
    templates = {"small": SMALL, "marked": MARKED}
    if DATA:
        templates |= {path.stem: path.read_text() for path in sorted((DATA / "chat_templates").glob("*.jinja"))}
        assert len(templates) > 6, templates.keys()
    else:
        print("CAIRN_TEST_DATA is not set: templates of models are left out")
    package = importlib.util.find_spec("trl")
    if package:  # those that it carries
        templates |= {"trl/" + path.stem: path.read_text()
                      for path in sorted((Path(package.origin).parent / "chat_templates").glob("*.jinja"))}
    for name, template in templates.items():
        counts = compare(list(requests_of(template)))
        print(f"      {name}: {counts[0]} equal, {counts[1]} refused by both", flush=True)
        assert counts[0] > 20, (name, counts)


# ---- random templates ----

NAMES = ["messages", "s", "u", "n", "f", "l", "d", "nope", "yes", "nil", "x", "y", "words", "empty"]
VARIABLES = {"s": "Hello, World ", "u": "naïve ☀ ΣΑΣ \u00a0ß", "n": 7, "f": 2.5, "l": [3, 1, 2, 2], "yes": True, "nil": None,
             "d": {"b": 1, "a": "two", "items": [1], "é": None, "C": {"k": 0.1}}, "words": ["b", "A", "c", "B", ""], "empty": []}
MESSAGES = [system("sys"), user("Hi\nthere "), assistant("a<b> & 'c' \"d\""), user("🙂")]


class Grammar:
    """Small templates, most of them sensible."""

    def __init__(self, seed):
        self.draw = random.Random(seed)
        self.loops = 0

    def one(self, *options):
        return self.draw.choice(options)

    def literal(self):
        return self.one("1", "0", "-3", "2.0", "1e3", "'a'", "\"it's\"", "'x\\n\\ty'", "''", "true", "none", "[]", "{}", "[1, 'a', none]",
                        "(1, 2)", "{'k': 1, 2: 'v'}", "'\\u00e9☀'", "10 // 3", "'%s-%d' % ('a', 3)", "()", "(1,)", "0x1f", "1_000", "'a' 'b'")

    def expression(self, depth=3):
        if depth == 0:
            return self.draw.choice(NAMES) if self.draw.random() < 0.6 else self.literal()
        deeper = depth - 1

        def e():
            return self.expression(self.draw.randint(0, deeper))
        kind = self.draw.randint(0, 17)
        if kind == 0:
            left, right = self.one(("n", "f"), ("n", "l[0]"), ("s", "u"), ("l", "words"), ("f", "-2"), (e(), e()), ("7", "n - 9"))
            return f"{left} {self.one('+', '-', '*', '/', '//', '%', '~', '==', '!=', '<', '>=', 'and', 'or', 'in', 'not in', '**')} {right}"
        if kind == 1:
            return f"({e()})"
        if kind == 2:
            return f"{self.one('not ', '-', '+', 'not not ')}{e()}"
        if kind == 3:
            return f"{e()} if {e()}" + self.one("", f" else {e()}")
        if kind in (4, 5, 6, 7):
            return (self.filtered() if self.draw.random() < 0.8 else f"{self.name()} | {self.filter()}") + self.one("", "", "", f" | {self.filter()}")
        if kind in (8, 9):
            return f"{self.name()} is {self.one('', 'not ')}{self.test()}"
        if kind in (10, 11):
            return f"{self.one('s', 'u', 's', chr(39) + ' a,b,,c ' + chr(39))}.{self.text_method()}"
        if kind == 12:
            return f"{self.name()}[{self.one('0', '-1', '1:', ':-1', '::-1', '::2', '1:3', chr(39) + 'role' + chr(39), chr(39) + 'b' + chr(39), '9', 'n', '-2:')}]"
        if kind == 13:
            return self.name() + self.one(".role", ".content", ".b", ".items()", ".items", ".keys() | list", ".get('b')", ".get('zz', 3)", ".nope",
                                          ".values() | list", "[0].content", ".a.b", ".append", ".pop", ".0", ".count(2)", ".index(1)", ".copy()")
        if kind == 14:
            return f"{e()} ~ {e()} ~ {self.literal()}"
        if kind == 15 and self.loops:
            return "loop." + self.one("index", "index0", "first", "last", "length", "revindex", "revindex0", "previtem", "nextitem", "depth", "cycle('a', 'b')", "changed(n)", "nope")
        if kind == 16:
            return f"{e()} {self.one('<', '==')} {e()} {self.one('<', '!=')} {e()}"
        return self.one("range(3) | list", "range(5, 0, -2) | list", "dict(a=1, b='x')", "namespace(v=1).v", "range(n)", "range(4)[::-1]", "self_made", "[n, f, s]",
                        "{'a': l, 'b': [u]}", "'{} {!r} {0}'.format(s)", "'{0}-{1}-{0}'.format(n, s)", "'{x}'.format(x=l)", "'%5.2f|%-4s|%03d' % (f, 'a', n)")

    def name(self):
        return self.draw.choice(NAMES) if self.draw.random() < 0.75 else "(" + self.expression(1) + ")"

    ANY = ("string", "tojson", "tojson(indent=2)", "tojson(indent=0)", "tojson(ensure_ascii=true)", "tojson(separators=(',', ':'))", "tojson(indent='\\t')", "default('zz')",
           "default('zz', true)", "d(n)", "safe", "tojson | safe", "string | length", "attr('role')", "e", "groupby('role')", "int", "int(default=3)", "float", "truncate(5)")
    TEXT = ("trim", "upper", "lower", "capitalize", "title", "length", "list", "first", "last", "reverse", "replace('l', 'L')", "replace('o', '', 1)", "trim('H ')", "wordcount", "indent",
            "indent(2, true)", "indent(width='>', blank=true)", "truncate(5)", "truncate(5, true, '~', 0)", "truncate(6, leeway=0)", "center(19)", "urlencode", "format(n)", "join('-')", "sort | join", "unique | join")
    NUMBER = ("int", "float", "abs", "round", "round(1)", "round(1, 'floor')", "round(0, 'ceil')", "string", "default(1)", "tojson")
    LIST = ("length", "count", "list", "first", "last", "reverse", "reverse | list", "sort", "sort(reverse=true)", "sort(case_sensitive=true)", "unique | list", "unique(case_sensitive=true) | list", "join(', ')",
            "join", "tojson(sort_keys=true)", "map('string') | list", "map('string') | map('upper') | join", "map('default', 'q') | list", "select | list", "reject('none') | list", "select('odd') | list",
            "select('in', [1, 'A']) | list", "min", "max", "sum", "sum(start=1)", "batch(2) | list", "batch(3, 'x') | list", "slice(2) | list", "slice(3, 0) | list", "reverse | first", "map('string') | first", "select | first | default('none')")
    CHAT = ("map(attribute='role') | list", "map(attribute='role') | join('|')", "map(attribute='zz', default=1) | list", "selectattr('role', 'equalto', 'user') | list", "selectattr('content') | list",
            "rejectattr('role', 'in', ['user', 'system']) | list", "selectattr('role', '==', 'user') | map(attribute='content') | list", "selectattr('zz', 'defined') | list", "join(attribute='role')", "sort(attribute='role')",
            "sort(attribute='role,content', reverse=true)", "unique(attribute='role') | list", "max(attribute='content')", "map('length') | sum", "rejectattr('zz') | map(attribute='role') | last", "map(attribute='content.0') | list", "map('items') | map('list') | first")
    DICT = ("items", "items | list", "dictsort", "dictsort(reverse=true)", "dictsort(case_sensitive=true)", "dictsort(by='value')", "length", "list", "first", "last", "tojson(sort_keys=true)", "join('/')", "items | map('first') | join", "sort", "urlencode", "map('upper') | list")

    def filter(self, depth=1):
        return self.draw.choice(self.one(self.ANY, self.TEXT, self.NUMBER, self.LIST, self.CHAT, self.DICT))

    def filtered(self):
        receivers, filters = self.one((("s", "u", "s", "u", "words[0]", "'  a-b (c) [d] '", "messages[1].content"), self.TEXT), (("n", "f", "-2.5", "'12'", "' 3.7 '", "'x'", "1e20", "-n"), self.NUMBER),
                                      (("l", "words", "empty", "range(4)", "(3, 'a', none)", "[true, 2.0, 1]"), self.LIST), (("messages", "messages[1:]"), self.CHAT), (("d", "{'z': 1, 'y': [2]}", "messages[0]", "{2: 'b', 1: 'a'}"), self.DICT),
                                      (NAMES, self.ANY))
        return f"{self.draw.choice(receivers)} | {self.draw.choice(filters)}"

    def test(self):
        return self.one("defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "number", "boolean", "integer", "float", "true", "false", "odd", "even",
                        "divisibleby(2)", "divisibleby 3", "equalto('a')", "eq 7", "in([1, 7, 'a'])", "in 'abc'", "lower", "upper", "callable", "sameas true", "sameas(none)", "ne 3", "gt 2", "lessthan 5", "ge(7)", "filter", "test", "escaped")

    def text_method(self):
        return self.one("strip()", "strip(' Hd')", "lstrip()", "rstrip('d ')", "split()", "split(',')", "split(None, 1)", "split('l', 1)", "rsplit(',', 1)", "rsplit()", "splitlines()", "startswith('He')",
                        "endswith(('d ', 'ß'))", "startswith('l', 2)", "upper()", "lower()", "title()", "capitalize()", "replace('l', 'LL')", "replace('', '-')", "replace('l', '', 1)", "find('o')", "rfind('o')", "find('zz')",
                        "index('W')", "index('zz')", "count('l')", "join(['a', 'b'])", "join(l)", "partition(',')", "rpartition('o')", "removeprefix('He')", "removesuffix('zz')", "zfill(20)", "center(21, '*')", "ljust(15)",
                        "rjust(15, '.')", "isalpha()", "isdigit()", "isspace()", "isupper()", "islower()", "isalnum()", "isascii()", "split(sep='o', maxsplit=1)", "encode()", "nope()", "format", "strip", "split('')", "split(',')[-1]",
                        "split(' ')[0].upper()")

    def tag(self, inside, kind="%"):
        open_, close = {"%": ("{%", "%}"), "{": ("{{", "}}"), "#": ("{#", "#}")}[kind]
        signs = ["", "", "", "-", "+"]
        before, after = self.draw.choice(signs), self.draw.choice(signs)
        if kind == "{" and after == "+":
            after = "-"
        if kind == "{" and before == "+" and self.draw.random() < 0.5:
            before = ""
        return f"{open_}{before}{self.one(' ', ' ', '', '  ') if kind != '#' else ' '}{inside} {after}{close}"

    def data(self):
        return self.one("", "", "text", " ", "\n", "\n  ", "  \n", " a\n\n b ", "\t", "{ }", "<|im_start|>", "é☀", "x\r\ny", "\n\u00a0", "%}", "a  ")

    def body(self, depth):
        return "".join(self.data() + self.statement(depth) for _ in range(self.draw.randint(1, 3))) + self.data()

    def statement(self, depth):
        if depth == 0:
            return self.tag(self.expression(), "{")
        kind = self.draw.randint(0, 15)
        if kind <= 4:
            return self.tag(self.expression(), "{")
        if kind == 5:
            out = self.tag(f"if {self.expression()}") + self.body(depth - 1)
            if self.draw.random() < 0.4:
                out += self.tag(f"elif {self.expression()}") + self.body(depth - 1)
            if self.draw.random() < 0.5:
                out += self.tag("else") + self.body(depth - 1)
            return out + self.tag("endif")
        if kind in (6, 7):
            head = self.one("x in ", "x, y in ", "x in ", "k, v in ", "message in ") + self.one(
                "l", "messages", "d", "d.items()", "s", "range(3)", "messages[1:]", "empty", "words | sort", "l | map('string')", "d | dictsort", "nope", "words | reverse", self.expression(1))
            self.loops += 1
            test = self.one("", "", "", f" if {self.expression(1)}", " if x", " if loop.first is undefined")
            inside = self.body(depth - 1) + self.one("", "", "", self.tag(f"if {self.expression(1)}") + self.tag(self.one("break", "continue")) + self.tag("endif"))
            self.loops -= 1
            return self.tag(f"for {head}{test}") + inside + self.one("", "", self.tag("else") + self.body(depth - 1)) + self.tag("endfor")
        if kind in (8, 9):
            return self.tag(f"set {self.one('x', 'y', 's', 'n', 'ns.v', 'x, y', 'l')} = {self.expression()}")
        if kind == 10:
            return self.tag(f"set {self.one('x', 'y', 's')}{self.one('', '', ' | upper', ' | trim | length')}") + self.body(depth - 1) + self.tag("endset")
        if kind == 11:
            name = self.one("m", "p")
            loops, self.loops = self.loops, 0
            inside = self.body(depth - 1) + self.one("", "", self.tag("caller() if caller is defined", "{"), "{{ varargs }}", "{{ kwargs }}")
            self.loops = loops
            return (self.tag(f"macro {name}({self.one('', 'x', 'x, y=2', 'x=n, y=x', 's')})") + inside + self.tag("endmacro") +
                    self.one(self.tag(f"{name}({self.one('', '1', '1, 2', 'y=3', 'x=s', '1, 2, 3', 'zz=1')})", "{"),
                             self.tag(f"call {name}({self.one('', '1')})") + self.data() + self.tag("endcall")))
        if kind == 12:
            return self.tag(f"with x = {self.expression(1)}, y = x") + self.body(depth - 1) + self.tag("endwith")
        if kind == 13:
            return self.tag(f"filter {self.one('upper', 'trim', 'replace(' + chr(39) + 'a' + chr(39) + ', s)', 'indent(2)')}") + self.body(depth - 1) + self.tag("endfilter")
        if kind == 14:
            return self.one(self.tag("a comment {{ x }}", "#"), "{% raw %} {{ raw }} {% x %}\n{% endraw %}", "{%- raw -%} {{ raw }} {%- endraw +%} ", self.tag("set ns = namespace(v=0, w='')") + self.tag("set ns.v = ns.v + n") + self.tag("ns.v", "{"))
        loops, self.loops = self.loops, 0
        out = self.tag("generation") + self.body(depth - 1) + self.tag("endgeneration")
        self.loops = loops
        return out

    def template(self):
        return self.tag("set ns = namespace(v=0)") + self.body(3)


def test_random_templates():
    seed = int(os.environ.get("CAIRN_FUZZ_SEED", "1"))
    totals = [0, 0, 0]
    for first in range(0, FUZZ, 2000):
        requests = []
        for i in range(first, min(first + 2000, FUZZ)):
            draw = random.Random(seed * 1_000_003 + i)
            grammar = Grammar(draw.random())
            # Half of them one expression: more of these render, and what differs is seen at once.
            template = "{{ " + grammar.expression() + " }}" if i % 2 else grammar.template()
            requests.append({"chat_template": template, "messages": MESSAGES, "variables": VARIABLES, "add_generation_prompt": i % 3 == 0})
        totals = [a + b for a, b in zip(totals, compare(requests, may_lack=True))]
    print(f"      {totals[0]} equal, {totals[1]} refused by both, {totals[2]} beyond the engine, of {FUZZ}", flush=True)
    assert totals[0] > 0.35 * FUZZ and totals[2] < 0.1 * FUZZ, totals


def test_hostile_templates_end():
    grow = "{% set ns = namespace(a='x') %}{% for i in range(64) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}{{ ns.a }}"
    hostile = ["{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", grow, "{{ 'x' * 999999999999 }}", "{{ [0] * 99999999999 }}",
               "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "{{ " + "not " * 50000 + "1 }}",
               "{{ 1" + " + 1" * 50000 + " }}", "{{ x" + "|list" * 50000 + " }}", "{% if 1 %}" * 5000 + "{% endif %}" * 5000, "{{ '%999999999d' % 1 }}",
               "{{ 'a'.center(99999999999) }}", "{{ 'a' | indent(99999999999) }}", "{{ [1] | tojson(indent=99999999999) }}", "{{ 2 ** 999999 }}",
               "{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}", "{% set ns = namespace(a=[]) %}{% for i in range(5000) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a }}",
               "{{ range(99999999) }}", "{{ 'a'.join(range(100000) | map('string') | list) * 99999 }}", "{{ strftime_now('%A' * 99999999) }}"]
    answers = ours([{"chat_template": template, "messages": [user("x")]} for template in hostile])
    for template, answer in zip(hostile, answers):
        assert answer.get("error", {}).get("reason") in ("limit", "failed", "unsupported"), (template[:80], str(answer)[:200])


def test_what_is_lacking_is_named():
    lacking = [("{% include 'x' %}", "include"), ("a\n{% extends 'x' %}", "extends"), ("{% block b %}{% endblock %}", "block"), ("{% import 'x' as y %}", "import"),
               ("{{ x | groupby('a') }}", "groupby"), ("{{ 1 }}\n\n{{ x | xmlattr }}", "xmlattr"), ("{% for a in l recursive %}{% endfor %}", "recursive"),
               ("{{ 's'.encode() }}", "encode"), ("{{ cycler('a') }}", "cycler"), ("{% autoescape true %}{% endautoescape %}", "autoescape"), ("{{ 9 ** 99 }}", "64 bits")]
    answers = ours([{"chat_template": template, "messages": [user("x")], "variables": {"l": [1]}} for template, _ in lacking])
    for (template, name), answer in zip(lacking, answers):
        error = answer["error"]
        assert error["reason"] == "unsupported" and name in error["message"] and error["line"] == 1 + template.count("\n"), (template, answer)


def test_folders():
    """Where a folder keeps its template, and what transformers' own loader makes of the same folder."""
    from transformers import AutoTokenizer
    with workspace() as folder:
        peer_tokenizer(None).save_pretrained(os.path.join(folder, "base"))
        saved = json.load(open(os.path.join(folder, "base", "tokenizer_config.json")))
        layouts = {
            "file": ("F{{ bos_token }}{{ messages[0].content }}\n", {}, {}),
            "both": ("F{{ eos_token }}", {"chat_template": "C"}, {}),
            "config": (None, {"chat_template": "C{{ messages | length }}{{ unk_token }}"}, {}),
            "list": (None, {"chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T{{ tools | length }}"}]}, {}),
            "more": ("D{{ custom_token }}", {"custom_token": "<c>", "pad_token": {"__type": "AddedToken", "content": "<p>"}}, {"tool_use": "T{{ pad_token }}"}),
        }
        for name, (template, config, more) in layouts.items():
            path = os.path.join(folder, name)
            model_folder(path, template)
            with open(os.path.join(path, "tokenizer_config.json"), "w") as file:
                json.dump({**saved, **config}, file)
            os.link(os.path.join(folder, "base", "tokenizer.json"), os.path.join(path, "tokenizer.json"))
            for extra, source in more.items():
                os.makedirs(os.path.join(path, "additional_chat_templates"), exist_ok=True)
                with open(os.path.join(path, "additional_chat_templates", extra + ".jinja"), "w") as file:
                    file.write(source)
            tokenizer = AutoTokenizer.from_pretrained(path)
            for tools in (None, TOOLS):
                expected = tokenizer.apply_chat_template([user("x")], tools=tools, tokenize=False)
                got = cairn("chat", path, "--render", input=json.dumps({"messages": [user("x")], "tools": tools})).stdout
                assert got == expected, (name, got, expected)
        none = cairn("chat", os.path.join(folder, "base"), "--render", check=False, input="[]")
        assert none.returncode != 0, none
        path = model_folder(os.path.join(folder, "none"))
        none = cairn("chat", path, "--render", check=False, input=json.dumps([user("x")]))
        assert none.returncode == 1 and "no chat template" in none.stderr, none.stderr
        broken = cairn("chat", model_folder(os.path.join(folder, "broken"), "a\n{% if x %}"), "--render", check=False, input=json.dumps([user("x")]))
        assert broken.returncode == 1 and "chat_template.jinja: line 2: Unexpected end of template" in broken.stderr, broken.stderr
        own = cairn("chat", model_folder(os.path.join(folder, "own"), "{{ raise_exception('no ' + messages[0].role) }}"), "--render",
                    check=False, input=json.dumps([user("x")]))
        assert own.returncode == 1 and own.stderr.rstrip().endswith("chat_template.jinja: line 1: no user"), own.stderr
        for request, part in [("{", "not JSON"), ("3", "list of messages"), ("{}", "messages"), ('{"messages": [], "x": 1}', "'x'"), ("[]", "empty conversation"),
                              ("[3]", "expected objects"), ('{"messages": [{}], "tools": 1}', "tools"), ('{"messages": [{}], "add_generation_prompt": 1}', "true or false")]:
            wrong = cairn("chat", os.path.join(folder, "file"), "--render", check=False, input=request)
            assert wrong.returncode == 1 and part in wrong.stderr, (request, wrong.stderr)


def test_conversations():
    """A small run learns nothing; what counts is how it is asked, and what happens where the context ends."""
    with workspace() as folder:
        path = os.path.join(folder, "text.txt")
        with open(path, "w") as file:
            file.write(text(documents=60))
        run = os.path.join(folder, "run")
        cairn("train", run_file(folder, path, **{"train.steps": 2, "optim.schedule.name": "constant", "optim.schedule.warmup": 0,
                                                 "optim.schedule.decay": None}), "--run", run, "--json")
        (model,) = [os.path.join(run, "checkpoints", name) for name in sorted(os.listdir(os.path.join(run, "checkpoints")))[-1:]]
        none = cairn("chat", model, check=False, input="Hi\n")
        assert none.returncode == 1 and "no chat template" in none.stderr and "--plain" in none.stderr, none.stderr
        with open(os.path.join(model, "chat_template.jinja"), "w") as file:
            file.write("{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}")
        options = ["--max-tokens", 5, "--temperature", 0]
        one = json.loads(cairn("chat", model, *options, "--prompt", "Hi", "--json").stdout)
        plain = json.loads(cairn("generate", model, *options, "--prompt", "u:Hi\na:", "--json").stdout)
        assert one["role"] == "assistant" and one["ids"] == plain["ids"] and one["content"] == plain["text"], (one, plain)
        # The second answer follows the whole conversation.
        lines = [json.loads(line) for line in cairn("chat", model, *options, "--system", "S", "--json", input="Hi\nMore\n\nnot read\n").stdout.splitlines()]
        assert len(lines) == 2, lines
        asked = f"s:S\nu:Hi\na:{lines[0]['content']}\nu:More\na:"
        again = json.loads(cairn("generate", model, *options, "--prompt", asked, "--json").stdout)
        assert lines[1]["ids"] == again["ids"], (lines, again)
        shown = cairn("chat", model, *options, "--system", "S", input="Hi\nMore\n").stdout
        assert shown.count("> ") == 3 and lines[0]["content"] in shown and lines[1]["content"] in shown, shown
        # 64 tokens of one byte each.
        full = cairn("chat", model, *options, check=False, input="a" * 20 + "\n" + "b" * 40 + "\n")
        assert full.returncode != 0 and "of its 3 messages the first 2 fit, message 3 (user: '" + "b" * 40 + "') and what follows do not" in full.stderr, full.stderr
        cut = cairn("chat", model, "--temperature", 0, "--prompt", "a" * 50, "--max-tokens", 50)
        assert "context of 64 tokens is full" in cut.stderr, cut.stderr
        for wrong in (["--plain", "--json"], ["--plain", "--system", "x"], ["--render", "--prompt", "x"], ["--top-p", 2]):
            assert cairn("chat", model, *wrong, check=False, input="").returncode == 2, wrong


if __name__ == "__main__":
    main([test_templates_of_models, test_random_templates, test_hostile_templates_end, test_what_is_lacking_is_named, test_folders, test_conversations])
