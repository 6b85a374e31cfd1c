"""The official `tokenizers` library and Cairn's program give the same ids and the same text: real tokenizers on all of the
test data, llama.cpp's cases of vocabularies that come as GGUF, every component that Cairn reads on odd and random text,
every character of Unicode, and what Cairn itself trains. One thread each, Cairn's whole process is faster than the library.

usage: tokenizers_test.py CAIRN_PROGRAM     (CAIRN_TEST_DATA: the folder of test data; without it only what needs none)
"""

import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
try:
    from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors,
                            trainers,
                           )
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

PROGRAM = sys.argv[1]
DATA = Path(os.environ["CAIRN_TEST_DATA"]) if os.environ.get("CAIRN_TEST_DATA") else None
D, N, P = decoders, normalizers, pre_tokenizers
failures = 0


def cairn(*args, lines=None):
    text = None if lines is None else "".join(json.dumps(line) + "\n" for line in lines)
    done = subprocess.run([PROGRAM, "tokenizer", *map(str, args)], input=text, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or done.stdout.strip())
    return [json.loads(line) for line in done.stdout.split("\n")[:-1]] if lines is not None else done.stdout


def official(call, items):
    """The library's answers; None where it panics (it does on bytes that a fallback vocabulary lacks, say)."""
    out = []
    for item in items:
        try:
            out.append(call(item))
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
                raise
            out.append(None)
    return out


def check(name, path, tokenizer, texts, both=(False, True)):
    """`both`: without special tokens and with them."""
    global failures
    wrong, checked = [], 0

    def compare(what, given, ours, theirs):
        nonlocal checked
        for g, our, their in zip(given, ours, theirs, strict=True):
            checked += their is not None
            if their is not None and our != their:
                wrong.append((what, g, our, their))

    for special in both:
        flag = ["--special"] if special else []
        ids = official(lambda text: tokenizer.encode(text, add_special_tokens=special).ids, texts)
        compare("encode", texts, cairn("encode", "--tokenizer", path, "--json", *flag, lines=texts), ids)
        chance = random.Random(1)
        lists = [i for i in ids if i is not None and len(i) < 2000]
        for _ in range(300):
            lists.append([chance.randrange(tokenizer.get_vocab_size()) for _ in range(chance.randrange(12))])
        back = official(lambda i: tokenizer.decode(i, skip_special_tokens=not special), lists)
        compare("decode", lists, cairn("decode", "--tokenizer", path, "--json", *flag, lines=lists), back)
    failures += len(wrong)
    print(f"{name}: {checked} checked, {len(wrong)} differ", flush=True)
    for what, given, our, their in wrong[:3]:
        print(f"   {what} {ascii(given)[:120]}\n      cairn    {ascii(our)[:160]}\n      official {ascii(their)[:160]}")
    if checked < len(texts):
        failures += 1
        print(f"   {name}: the library answered only {checked} of {len(texts)} times")


# ---- texts ----
ODD = [
    "", " ", "  ", "\n", "\t", "\r\n", "a", "  a", "a  ", "\n\n \n x", "Hello, world!", "I'm you're HE'LL we'Ve 'S ſ'ſ",
    "don't DON'T 'tis '", "1234567 12 3", "٣٤٥ Ⅷ ½ ²", "漢字かな交じり文 テスト", "안녕하세요 세계", "👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 e\u0301",
    "\u00a0\u2003\u3000x\u1680y\u180ez\u200b", "\u2028\u2029\x85\x0b\x0c\x1c", "İıẞß ﬁ ℌ Ω", "\x00\x01\x7f",
    "<|endoftext|>", "a<|endoftext|>b", "a <|endoftext|> b <|assistant|>  c", "<s>hello</s>  world", "<unk><0x0A>",
    "▁▁a ▁ b", "a\u0301\u0316\u0323", "שלום עולם", "नमस्ते दुनिया", "สวัสดีชาวโลก",
    "def f(x):\n    return x**2  # comment\n\n\tif x:\n", "http://example.com/?q=a&b=c#d", "!!!???...,,,;;;", "—–‘’“”…",
    "\ufeffbom", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "🦙.cpp", "\U0010ffff\ue000", "x" * 1000, " " * 100, "\n" * 50 + "  \n  x", "ab" * 400,
    "é" * 300, "\t \t\n \r\n\r", "½a1b２c", "Ａｂｃ", "\u0345\u0f71", "a\u200d\u200cb",
    "\U0001e94b\ua7ce\U00016ea0\U00031350\u2ffc", "C\u0327\u030a", "가각힣 \u1100\u1161\u11a8",
    "<|user|>\n hi <|end|>\n<|assistant|>", "<｜begin▁of▁sentence｜>x<think>\n</think>", "x'lly 'llama",
    "café ABC abc É tis Tis  tis hello hellos",
]


def noise(count, seed):
    chance = random.Random(seed)
    kinds = [
        lambda: chr(chance.randrange(32, 127)), lambda: chance.choice(" \t\n\r'"),
        lambda: chance.choice("abcstmdrelvSTMDREVL'"), lambda: chr(chance.randrange(0x80, 0x3000)),
        lambda: chr(chance.randrange(0x3000, 0xD800)), lambda: chr(chance.randrange(0x10000, 0x20000)),
        lambda: chr(chance.randrange(0xE000, 0x10000)), lambda: chr(
            chance.choice([0x300, 0x301, 0x316, 0x323, 0x327, 0x200D, 0xFE0F, 0x1F468, 0x2581, 0xA0, 0x3000, 0x2028])),
        lambda: chance.choice("0123456789"),
        lambda: chance.choice(["<|endoftext|>", "</s>", "<s>", "<unk>", "<|user|>", "  ", "<0x0A>", "▁"]),
    ]
    return [
        "".join(chance.choice(some)()
                for _ in range(chance.randrange(1, 40)))
        for some in (chance.sample(kinds, chance.randrange(1, 5)) for _ in range(count))
    ]


def every_character():
    out = []
    for first in [*range(0, 0xD800, 16), *range(0xE000, 0x32400, 16), *range(0xE0000, 0xE0200, 16)]:
        some = [chr(c) for c in range(first, first + 16)]
        out.append("".join(some) + " " + "a".join(some) + " 1".join(some) + " !".join(some) + "'s" + " ".join(some))
    return out


def english():
    from pydoc_data import topics  # 700 KB of prose and code that every Python has

    return "\n".join(topics.topics.values())


# ---- real tokenizers ----
def gpt2():
    folder = DATA / "tokenizers/gpt2"
    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.pre_tokenizer, tokenizer.decoder = P.ByteLevel(add_prefix_space=False), D.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def real_tokenizers():
    global failures
    plays = (DATA / "corpora/tinyshakespeare.txt").read_bytes().decode()
    problems = (DATA / "gsm8k/train.jsonl").read_bytes().decode().split("\n")
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as lines:
        lines.writelines(json.dumps(text) + "\n" for text in [plays, *problems])
        lines.flush()
        for name in ["gpt2", "phi-2", "phi-3", "deepseek"]:
            folder = DATA / "tokenizers" / name
            tokenizer = gpt2() if name == "gpt2" else Tokenizer.from_file(str(folder / "tokenizer.json"))
            check(f"{name} on odd and random text", folder, tokenizer, ODD + noise(1500, 2))
            begin = time.perf_counter()
            theirs = [e.ids for e in tokenizer.encode_batch_fast([plays, *problems], add_special_tokens=False)]
            middle = time.perf_counter()
            answer = subprocess.run(
                [PROGRAM, "tokenizer", "encode", "--tokenizer", folder, "--json", "--input", lines.name],
                capture_output=True, text=True, check=True,
            ).stdout
            end = time.perf_counter()
            ours = [json.loads(line) for line in answer.split("\n")[:-1]]
            faster = (middle - begin) / (end - middle)
            print(
                f"{name} on tinyshakespeare.txt and gsm8k/train.jsonl: {sum(map(len, theirs))} ids, equal: {ours == theirs}; cairn's process takes "
                f"{end - middle:.2f} s, the library's encode_batch_fast {middle - begin:.2f} s: {faster:.1f} x",
                flush=True,
            )
            failures += (ours != theirs) + (faster < 1)


# ---- llama.cpp's vocabularies ----
def split_by(regex):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def from_gguf(name):
    import gguf

    fields = {
        key: field.contents()
        for key, field in gguf.GGUFReader(DATA / f"tokenizers/oracles/ggml-vocab-{name}.gguf").fields.items()
    }
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    vocab = {token: i for i, token in enumerate(tokens)}
    model = {
        "type": "BPE", "unk_token": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
        "merges": fields.get("tokenizer.ggml.merges"),
    }
    json_of = {
        "version": "1.0", "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "model": model, "added_tokens": [{
            "id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": True,
        } for i, (t, kind) in enumerate(zip(tokens, types)) if kind in (2, 3, 4)],
    }
    if (name == "llama-spm"
       ):  # as transformers converts SentencePiece: a merge for every way to make a token of two, best score first
        merges = [(-score, t[:k], t[k:]) for t, score, kind in zip(tokens, fields["tokenizer.ggml.scores"], types)
                  if kind == 1 for k in range(1, len(t)) if t[:k] in vocab and t[k:] in vocab]
        model.update(unk_token="<unk>", fuse_unk=True, byte_fallback=True,
                     merges=[[left, right] for _, left, right in sorted(merges, key=lambda m: m[0])],
                    )
        json_of["normalizer"] = {
            "type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                                                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},],
        }
    else:
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        json_of["pre_tokenizer"] = {
            "type": "Sequence", "pretokenizers": [
                split_by("[\r\n]"),
                split_by(r"\s?\p{L}+"),
                split_by(r"\s?\p{P}+"),
                split_by("[一-龥ࠀ-一가-퟿]+"), {"type": "Digits", "individual_digits": True}, level,
            ],
        }
    return json_of


def llama_cpp(folder):
    global failures
    for name in ["deepseek-llm", "llama-spm"]:
        path = folder / f"{name}.json"
        path.write_text(json.dumps(from_gguf(name)))
        base = DATA / f"tokenizers/oracles/ggml-vocab-{name}.gguf"
        texts = Path(f"{base}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")[:-1]
        answers = [[int(i) for i in line.split()] for line in Path(f"{base}.out").read_text().split("\n")[:-1]]
        ours = cairn("encode", "--tokenizer", path, "--json", lines=texts)
        wrong = sum(a != b for a, b in zip(ours, answers, strict=True))
        print(f"llama.cpp's {name}: {len(texts)} cases, {wrong} differ", flush=True)
        failures += wrong


# ---- every component ----
CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = CL100K.replace("{1,3}", "")
DBRX = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
UP, LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = rf"[^\r\n\p{{L}}\p{{N}}]?{UP}*{LOW}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{{L}}\p{{N}}]?{UP}+{LOW}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def charsmap(rules):
    """SentencePiece's precompiled_charsmap: a Darts double array of the keys, then the replacements."""
    trie, texts = {}, b""
    for key, value in rules.items():
        node = trie
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[None] = len(texts)
        texts += value.encode() + b"\0"
    units, taken = {0: 0}, {0}

    def place(node, at):
        labels = [0 if byte is None else byte for byte in node]
        base = next(b for b in range(256, 1 << 20) if not any((b ^ label) in taken for label in labels))
        units[at] |= (at ^ base) << 10 | (0x100 if None in node else 0)
        taken.update(base ^ label for label in labels)
        for byte, child in node.items():
            if byte is None:
                units[base] = child | 1 << 31
            else:
                units[base ^ byte] = byte
                place(child, base ^ byte)

    place(trie, 0)
    size = (max(units) | 255) + 1
    return struct.pack("<I", size * 4) + b"".join(struct.pack("<I", units.get(i, 0)) for i in range(size)) + texts


LEVEL = P.ByteLevel(add_prefix_space=False, use_regex=False)
ISOLATED = {
    name: P.Sequence([P.Split(Regex(regex), "isolated"), LEVEL])
    for name, regex in {"cl100k": CL100K, "qwen2": QWEN2, "o200k": O200K, "dbrx": DBRX}.items()
}
PRE_TOKENIZERS = {
    "none": None, "byte level": P.ByteLevel(add_prefix_space=False
                                           ), "byte level, prefix": P.ByteLevel(add_prefix_space=True),
    "byte level, whole": P.ByteLevel(add_prefix_space=True, use_regex=False),
    **ISOLATED, "inverted": P.Sequence([P.Split(Regex(CL100K), "removed", invert=True), LEVEL]),
    "smollm": P.Sequence([P.Digits(individual_digits=True),
                          P.ByteLevel(add_prefix_space=False)]), "digits": P.Digits(individual_digits=False),
    **{
        f"punctuation {b}": P.Punctuation(b) for b in ("isolated", "contiguous", "removed", "merged_with_previous", "merged_with_next")
    }, "whitespace": P.Whitespace(), "whitespace split": P.WhitespaceSplit(), "bert": P.BertPreTokenizer(),
    "delimiter": P.CharDelimiterSplit("e"), **{
        f"metaspace {s}": P.Metaspace(prepend_scheme=s) for s in ("always", "first", "never")
    }, "metaspace whole": P.Metaspace(prepend_scheme="first",
                                      split=False), "words, metaspace": P.Sequence([P.WhitespaceSplit(),
                                                                                    P.Metaspace()]),
    "words, metaspace first": P.Sequence([P.WhitespaceSplit(), P.Metaspace(prepend_scheme="first")]), "gemma": P.Split(
        " ", "merged_with_previous"), "spaces next": P.Split(" ", "merged_with_next"), "spaces contiguous": P.Split(
            " ", "contiguous"), "not spaces": P.Split(" ", "isolated",
                                                      invert=True), "words": P.Split(Regex(r"\w+"), "isolated"),
    "not words": P.Split(Regex(r"[^\w\s]+|\d"), "merged_with_previous"), "borders": P.Split(Regex(r"\b"), "isolated"),
    "empty": P.Split(Regex(r"a*"), "isolated"), "scripts": P.Split(Regex(r"\p{Han}+|\p{Hiragana}"), "isolated"),
    "lines": P.Split(Regex(r"^.*$"), "isolated"), "not letters": P.Split(Regex(r"\S+|\P{L}"), "contiguous"),
    "byte level, split": P.Sequence([P.ByteLevel(add_prefix_space=False),
                                     P.Split("Ġ", "merged_with_next")]),
}
LLAMA = N.Sequence([N.Prepend("▁"), N.Replace(" ", "▁")])
NORMALIZERS = {
    "NFC": N.NFC(), "NFD": N.NFD(), "NFKC": N.NFKC(), "NFKD": N.NFKD(), "Lowercase": N.Lowercase(), "Strip": N.Strip(),
    "Strip left": N.Strip(left=True, right=False), "StripAccents": N.Sequence([N.NFD(),
                                                                               N.StripAccents()]), "Nmt": N.Nmt(),
    "Prepend": N.Prepend("▁"), "Replace": N.Replace(" ", "▁"), "Replace regex": N.Replace(Regex(r"\s{2,}"), " "),
    "Replace by nothing": N.Replace("e", ""), "Replace empty": N.Replace(Regex("x*"), "-"), "Bert": N.BertNormalizer(),
    "Bert accents": N.BertNormalizer(lowercase=False, strip_accents=True, clean_text=False), "ByteLevel": N.ByteLevel(),
    "llama": LLAMA, "Precompiled": N.Precompiled(
        charsmap({"ﬁ": "fi", "Ａ": "A", "\u3000": " ", "e\u0301": "é", "ab": "x", "\n": " ", "½": "1/2", "\ufeff": ""})),
}


def components(folder):
    texts, prose = ODD + noise(200, 7), english()[:100_000].split("\n\n")
    corpus = prose + noise(600, 3) + ODD

    def run(name, model, trainer, norm=None, pre=None, decoder=None, processor=None, train_on=corpus, change=None,
            texts=texts,
           ):
        tokenizer = Tokenizer(model)
        for part, value in (("normalizer", norm), ("pre_tokenizer", pre), ("decoder", decoder)):
            if value is not None:
                setattr(tokenizer, part, value)
        tokenizer.train_from_iterator(train_on, trainer)
        if change:
            json_of = json.loads(tokenizer.to_str())
            change(json_of)
            tokenizer = Tokenizer.from_str(json.dumps(json_of))
        tokenizer.add_special_tokens([
            "<|endoftext|>", "<s>",
            AddedToken("</s>", rstrip=True, normalized=False, special=True),
            AddedToken("<|user|>", lstrip=True, normalized=False, special=True),
        ])
        # NOTE: spaces that a normalizer strips would be an empty pattern, on which the library never ends.
        spaces = [] if "Strip" in name else [AddedToken("  ", normalized=True)]
        tokenizer.add_tokens([
            AddedToken("hello", single_word=True), *spaces,
            AddedToken("ab", normalized=False),
            AddedToken("tis", lstrip=True, rstrip=True, normalized=True),
            AddedToken("É", normalized=True),
            AddedToken("def f"),
        ])
        if processor is not None:
            tokenizer.post_processor = processor
        path = folder / "component.json"
        tokenizer.save(str(path))
        check(name, path, tokenizer, texts, (False, True) if processor else (False,))
        return tokenizer

    def bpe(**options):
        return trainers.BpeTrainer(vocab_size=1200, show_progress=False, special_tokens=["<unk>"],
                                   initial_alphabet=P.ByteLevel.alphabet(), **options,
                                  )

    def unigram():
        return trainers.UnigramTrainer(vocab_size=800, show_progress=False, special_tokens=["<unk>", "<s>"],
                                       unk_token="<unk>")

    template = processors.TemplateProcessing(single="<s> $A <unk>", pair="$A $B", special_tokens=[("<s>", 1),
                                                                                                  ("<unk>", 0)])
    for name, pre in PRE_TOKENIZERS.items():
        level = "byte" in name or name in (*ISOLATED, "smollm", "inverted")
        run(f"pre-tokenizer {name}", models.BPE(unk_token="<unk>"), bpe(), None, pre,
            D.ByteLevel() if level else None,
            texts=texts + every_character()[::1 if name in ("byte level", "o200k") else 5 if name in ISOLATED else 50],
           )
    for name, norm in NORMALIZERS.items():
        run(f"normalizer {name}", models.BPE(unk_token="<unk>", fuse_unk=True),
            bpe(), norm, None if name == "llama" else P.Metaspace(prepend_scheme="first"),
            D.Metaspace(prepend_scheme="first"), texts=texts + every_character()[::12],
           )
    for scheme in ("always", "first", "never"):
        run(f"unigram, metaspace {scheme}", models.Unigram(), unigram(), N.NFKC(), P.Metaspace(prepend_scheme=scheme),
            D.Metaspace(prepend_scheme=scheme), template, train_on=prose + ODD,
           )
    run("unigram, whole text", models.Unigram(), unigram(), train_on=prose + ODD)
    run("word level", models.WordLevel(unk_token="<unk>"),
        trainers.WordLevelTrainer(vocab_size=2000, special_tokens=["<unk>"], show_progress=False), None, P.Whitespace(),
        None, processors.BertProcessing(("<unk>", 0), ("hello", 3)),
       )
    run("word piece", models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=20),
        trainers.WordPieceTrainer(vocab_size=2000, special_tokens=["[UNK]"], show_progress=False), N.BertNormalizer(),
        P.BertPreTokenizer(), D.WordPiece(), processors.RobertaProcessing(("<unk>", 0), ("hello", 3)),
       )
    run("end of word", models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"),
        trainers.BpeTrainer(vocab_size=2500, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False),
        N.Lowercase(), P.Whitespace(), D.BPEDecoder("</w>"),
       )
    run(
        "subword prefix", models.BPE(unk_token="<unk>", continuing_subword_prefix="##"),
        trainers.BpeTrainer(vocab_size=2500, special_tokens=["<unk>"], continuing_subword_prefix="##",
                            show_progress=False), None, P.Whitespace(), D.WordPiece(cleanup=False),
    )
    run("ignore merges", models.BPE(ignore_merges=True), bpe(), None, P.ByteLevel(add_prefix_space=False),
        D.ByteLevel())

    def fallback(fuse, lacking=()):

        def change(json_of):
            model = json_of["model"]
            names = [f"<0x{b:02X}>" for b in range(256) if b not in lacking] + sorted(
                model["vocab"], key=model["vocab"].get)
            model.update(byte_fallback=True, fuse_unk=fuse,
                         vocab={name: i for i, name in enumerate(dict.fromkeys(names))})
            json_of["added_tokens"] = []

        return change

    small = trainers.BpeTrainer(vocab_size=800, special_tokens=["<unk>"], show_progress=False)
    spm = D.Sequence([D.Replace("▁", " "), D.ByteFallback(), D.Fuse(), D.Strip(" ", 1, 0)])
    for fuse in (True, False):
        for lacking in ((), (0xE3, 0xF0)):
            run(f"byte fallback, fuse {fuse}, {len(lacking)} bytes lacking", models.BPE(unk_token="<unk>"), small,
                LLAMA, None, spm, train_on=prose, change=fallback(fuse, lacking),
               )
    run("gemma's byte fallback", models.BPE(unk_token="<unk>"), small, N.Replace(" ", "▁"),
        P.Split(" ", "merged_with_previous"), D.Sequence([D.Replace("▁", " "),
                                                          D.ByteFallback(),
                                                          D.Fuse()]), train_on=prose, change=fallback(True),
       )

    def unigram_fallback(json_of):
        json_of["model"].update(byte_fallback=True,
                                vocab=json_of["model"]["vocab"] + [[f"<0x{b:02X}>", -9.0] for b in range(256)])

    run("unigram with byte fallback", models.Unigram(), unigram(), None, P.Metaspace(),
        D.Sequence([D.ByteFallback(), D.Metaspace()]), train_on=prose, change=unigram_fallback,
       )


# ---- what Cairn trains ----
def training(folder):
    global failures
    from transformers import AutoTokenizer

    text = folder / "text.txt"
    text.write_text(english() * 12)
    files = []
    for threads in (1, 3):
        out = folder / f"trained{threads}"
        begin = time.perf_counter()
        cairn("train", text, "--vocab-size", 4000, "--out", out, "--threads", threads)
        seconds = time.perf_counter() - begin if threads == 1 else seconds
        files.append((out / "tokenizer.json").read_bytes())
    begin = time.perf_counter()
    theirs = Tokenizer(models.BPE())
    theirs.pre_tokenizer = P.ByteLevel(add_prefix_space=False)
    theirs.train_from_iterator([text.read_text()],
                               trainers.BpeTrainer(vocab_size=4000, special_tokens=["<|endoftext|>"],
                                                   initial_alphabet=P.ByteLevel.alphabet(), show_progress=False,
                                                  ),
                              )
    slower = (time.perf_counter() - begin) / seconds
    print(
        f"training on {text.stat().st_size} bytes: the same for 1 and 3 threads: {files[0] == files[1]}; one thread, cairn's process {seconds:.2f} s, the library {slower * seconds:.2f} s: {slower:.1f} x"
    )
    failures += (files[0] != files[1]) + (slower < 1)
    trained = Tokenizer.from_file(str(out / "tokenizer.json"))
    check("trained", out, trained, ODD + noise(1000, 9) + [english()])
    auto = AutoTokenizer.from_pretrained(out)
    loads = (auto.eos_token == "<|endoftext|>" and
             auto("hello<|endoftext|>")["input_ids"] == trained.encode("hello<|endoftext|>").ids)
    print(f"transformers' AutoTokenizer loads it: {loads}")
    failures += not loads


with tempfile.TemporaryDirectory() as temporary:
    if DATA:
        real_tokenizers()
        llama_cpp(Path(temporary))
    else:
        print("CAIRN_TEST_DATA is not set: real tokenizers are left out")
    components(Path(temporary))
    training(Path(temporary))
print(f"{failures} differences")
sys.exit(failures != 0)
