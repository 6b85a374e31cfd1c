"""The page of `cairn report` in a real headless browser: every plot drawn, nothing asked of the network, no error."""
# labels:
import json
import math
import os
import random
import re
import shutil
import sys
import time

import numpy

import browser
from harness import cairn, journal, main, run_file, text, workspace

# CAIRN_PICTURES=FOLDER keeps what the browser showed.
PICTURES = os.environ.get("CAIRN_PICTURES")


CONSTANT = {"optim.schedule.name": "constant", "optim.schedule.warmup": 0, "optim.schedule.decay": None}


# ---- runs to report on ----
def train(folder, name, **changes):
    path = os.path.join(folder, "text.txt")
    if not os.path.exists(path):
        with open(path, "w") as file:
            file.write(text())
    run = os.path.join(folder, name)
    settings = {"train.steps": 60, "eval.every": 10, "eval.sequences": 8, "checkpoints.every": 10, "checkpoints.log_spaced": True,
                "train.sample": {"every": 20, "prompt": "The people", "tokens": 24, "temperature": 0.8}, **changes}
    cairn("train", run_file(folder, path, **settings), "--run", run, "--json")
    return run


def crc32c(lines):
    """CRC-32C of each of many byte strings, all of them at once, byte by byte."""
    table = numpy.arange(256, dtype=numpy.uint32)
    for _ in range(8):
        table = numpy.where(table & 1, (table >> 1) ^ numpy.uint32(0x82F63B78), table >> 1)
    lengths = numpy.array([len(line) for line in lines])
    data = numpy.zeros((max(lengths), len(lines)), numpy.uint8)
    for i, line in enumerate(lines):
        data[:len(line), i] = numpy.frombuffer(line, numpy.uint8)
    crc = numpy.full(len(lines), 0xFFFFFFFF, numpy.uint32)
    for at in range(len(data)):
        crc = numpy.where(at < lengths, table[(crc ^ data[at]) & 255] ^ (crc >> 8), crc)
    return [f"{c ^ 0xFFFFFFFF:08x}" for c in crc.tolist()]


def write_journal(run, entries):
    lines = [json.dumps({k: v for k, v in e.items() if k != "crc"}, separators=(",", ":")).encode()[:-1] for e in entries]
    with open(os.path.join(run, "journal.jsonl"), "wb") as file:
        for line, crc in zip(lines, crc32c(lines)):
            file.write(line + f',"crc":"{crc}"}}\n'.encode())


def write_series(folder, metric, values):
    """{(step, name): number or nested lists}"""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, f"{metric}.jsonl"), "w") as file:
        for (step, name), value in values.items():
            file.write(json.dumps({"step": step, "name": name, "value": value}) + "\n")


PARTS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


def write_measures(run, layers=6, last=60, seed=1):
    """Probes and analyses of every shape there is: numbers of tensors, of layers, of heads, of the model; spectra, matrices."""
    draw = random.Random(seed)
    steps = [0, 1, 2, 4, 8, 16] + list(range(20, last + 1, 5))
    probes, analysis = os.path.join(run, "probes"), os.path.join(run, "analysis")
    tensors = [f"model.layers.{layer}.{part}.weight" for layer in range(layers) for part in PARTS]
    write_series(probes, "grad_norm", {(s, t): math.exp(draw.gauss(-3 - 0.03 * s, 0.2)) for s in range(1, last + 1) for t in tensors + ["model.embed_tokens.weight", "model.norm.weight"]})
    write_series(probes, "kurtosis", {(s, f"layer.{n}"): 1.5 + n * 0.4 + 0.02 * s + draw.gauss(0, 0.1) for s in steps for n in range(layers)})
    write_series(probes, "attention_entropy", {(s, f"layer.{n}"): [max(0, 3.2 - 0.02 * s - 0.1 * h + draw.gauss(0, 0.05)) for h in range(4)] for s in steps for n in range(layers)})
    write_series(probes, "noise_scale", {(s, ""): None if s == 1 else 20 * math.exp(0.05 * s + draw.gauss(0, 0.2)) for s in range(1, last + 1)})
    write_series(probes, "grad_cosine", {(s, f"layer.{n}"): draw.gauss(0.1 * n - 0.2, 0.2) for s in steps for n in range(layers)})
    write_series(probes, "token_loss", {(s, ""): [5.5 * math.exp(-0.02 * s * (1 + i % 7 / 4)) + draw.random() for i in range(300)] for s in steps})
    write_series(analysis, "singular_values", {(s, t): sorted((abs(draw.gauss(1, 0.3)) * (1 + s / 20) / (1 + i) ** (0.2 + s / 100) for i in range(32)), reverse=True) for s in steps for t in tensors[:14]})
    write_series(analysis, "cka_layers", {(s, ""): [[1 if i == j else math.exp(-abs(i - j) / (1 + s / 20)) for j in range(layers)] for i in range(layers)] for s in steps})


HOSTILE = 'He said </script><script>window.broken = 1</script> "and" <!-- \\ \u2028 <b>bold</b> & \'so\' '


def write_samples(run, steps):
    with open(os.path.join(run, "samples.jsonl"), "wb") as file:
        for step in steps:
            file.write(json.dumps({"step": step, "prompt": "The people", "text": f" of step {step} {HOSTILE}"}).encode() + b"\n")
        file.write(b'{"step": 60, "prompt": "raw \xff\xfe bytes", "text": "not UTF-8: \xc3( end"}\n')


def write_events(run):
    lines = journal(run)
    lines[14]["events"] = [{"event": "spike", "threshold": 6.5, "action": "log"}]
    lines[24].update(loss=None, grad_norm=None, events=[{"event": "nonfinite", "action": "skip"}])
    lines[39]["events"] = [{"event": "signal", "signal": "SIGUSR1"}, {"event": "<img src=x onerror=alert(1)>"}]
    write_journal(run, lines)
    path = os.path.join(run, "build.json")
    build = json.load(open(path))
    build["resumptions"] = [{"after_step": 20, "time": "2026-01-02T03:04:05Z"}]
    build["parent"] = {"run": "../mother", "step": 0, "digest": "0"}
    with open(path, "w") as file:
        json.dump(build, file)
    with open(os.path.join(run, "forks.jsonl"), "w") as file:
        file.write('{"run": "../child", "step": 30}\n{"run": "../tor')


def rich(folder):
    run = train(folder, "base")
    write_events(run)
    write_measures(run)
    write_samples(run, range(20, 61, 20))
    return run


# ---- what a page has to fulfil ----
def report(*arguments):
    return json.loads(cairn("report", *arguments, "--json").stdout)


DRAWN = """[...document.querySelectorAll('.plot')].map((plot) => ({
  id: plot.id, traces: Number(plot.dataset.traces), width: plot.getBoundingClientRect().width,
  marks: plot.querySelectorAll('.scatterlayer .trace path, .scatterlayer .point, .heatmaplayer image').length,
  data: (plot.data || []).map((trace) => ({type: trace.type, points: (trace.x || []).length})),
  label: plot.getAttribute('aria-label')}))"""
# The widest thing that is no inside of a scrolling box.
OVERFLOW = """(() => { const width = document.documentElement.clientWidth;
  const wide = [...document.querySelectorAll('body *')].filter((e) => !e.closest('.scroll, .js-plotly-plot svg') && e.getBoundingClientRect().right > width + 1 && !e.matches('.skip'));
  return {scroll: document.documentElement.scrollWidth - width, wide: wide.map((e) => e.tagName + '.' + e.className).slice(0, 5)}; })()"""


def look(window, page, name, plots, width=1280, dark=False):
    opened = window.open(page, width=width, height=900 if width > 500 else 844, dark=dark, touch=width < 500)
    opened.wait("document.documentElement.dataset.ready === 'true'")
    drawn = opened.value(DRAWN)
    assert len(drawn) == plots, (name, len(drawn), plots)
    for plot in drawn:
        assert plot["traces"] > 0 and plot["marks"] > 0 and plot["width"] > 200, (name, plot)
        assert sum(trace["points"] for trace in plot["data"]) > 0, (name, plot)
        assert len(plot["label"]) > 20, (name, plot)
    over = opened.value(OVERFLOW)
    assert over["scroll"] <= 0 and not over["wide"], (name, width, over)
    assert opened.value("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    ground = [int(c) for c in re.findall(r"\d+", opened.value("getComputedStyle(document.body).backgroundColor"))[:3]]
    assert (sum(ground) < 200) == dark, (name, ground)
    if PICTURES:
        opened.picture(os.path.join(PICTURES, f"{name}-{width}-{'dark' if dark else 'light'}.png"))
    return opened


def settle(opened):
    """Nothing broken, nothing asked for: looked at last, after everything that was pressed."""
    assert opened.errors() == [], opened.errors()
    assert opened.requests() == [], opened.requests()
    opened.close()


def press(opened, group, text_):
    opened.value(f"""[...document.querySelectorAll('[aria-label="{group}"] button')].find((b) => b.textContent === {json.dumps(text_)}).click()""")
    opened.wait("document.documentElement.dataset.ready === 'true'")


# ---- tests ----
def test_one_run_in_four_views():
    with workspace() as folder, browser.Browser() as window:
        run = rich(folder)
        made = report(run)
        assert made["out"] == os.path.join(run, "report.html") and made["bytes"] == os.path.getsize(made["out"]), made
        assert made["plots"] >= 15 and made["bytes"] < 4e6, made
        for width in (1280, 390):
            for dark in (False, True):
                opened = look(window, made["out"], "one", made["plots"], width, dark)
                said = opened.value("document.body.innerText")
                for words in ("Validation, bits per byte", "1 step without a finite loss", "The people", "23.7k parameters", "spike 1 ×", "resumed 1 ×", "fork of 1 ×", "forked 1 ×",
                              "13 checkpoints stored"):
                    assert words in said, (words, said)
                settle(opened)


def test_what_was_really_measured():
    """Every probe of a replay and every metric of an analysis; the same models once more as a series of no run."""
    with workspace() as folder, browser.Browser() as window:
        run = train(folder, "measured", **{"trajectory.every": 2, "checkpoints.every": 12, "data.context": 64})
        cairn("replay", run, "--probe", "all", "--every", 6, "--threads", 2, "--text", os.path.join(folder, "text.txt"))
        metrics = [line.split()[0] for line in cairn("analyze", "--help").stdout.split("\nMetrics")[1].split("\n\n")[0].splitlines()[1:]]
        assert "spectrum" in metrics and "cka" in metrics, metrics
        cairn("analyze", run, "--stored", *[m for m in metrics if m != "expert_load"], "--samples", 4, "--points", 3)
        probes = sorted(f[:-6] for f in os.listdir(os.path.join(run, "probes")) if f.endswith(".jsonl"))
        assert len(probes) > 9, probes
        series = os.path.join(run, "checkpoints", "step-{N}")
        for name, path, out in (("measured", run, os.path.join(run, "report.html")), ("series", series, os.path.join(folder, "series.html"))):
            made = report(path, "--out", out)
            for width, dark in ((1280, False), (390, True)):
                opened = look(window, made["out"], name, made["plots"], width, dark)
                shown = set(opened.value("JSON.parse(document.getElementById('data').textContent).runs[0].measures.map((m) => m.metric)"))
                assert shown >= {"effective_rank", "norm", "drift"} | ({"token_nll", "cka_layers", *probes} if name == "measured" else set()), shown
                assert "is not shown" not in opened.value("document.body.innerText")
                settle(opened)


def test_controls_change_the_plots():
    with workspace() as folder, browser.Browser() as window:
        made = report(rich(folder))
        opened = look(window, made["out"], "controls", made["plots"])
        loss = "document.getElementById('figure-1')"
        heat = "[...document.querySelectorAll('.plot')].find((p) => p.data[0].type === 'heatmap')"
        assert opened.value(f"{loss}.layout.xaxis.type") == "linear"
        whole = opened.value(f"{loss}.layout.xaxis.range")
        # One plot is zoomed: the linked ones follow, heat maps too; the button gives the whole run back.
        opened.value(f"Plotly.relayout({loss}, {{'xaxis.range[0]': 10, 'xaxis.range[1]': 20}}).then(() => true)")
        opened.wait(f"JSON.stringify({heat}.layout.xaxis.range) === '[10,20]'")
        opened.wait("document.getElementById('figure-3').layout.xaxis.range[1] === 20")
        opened.value("document.getElementById('whole').click()")
        opened.wait(f"JSON.stringify({heat}.layout.xaxis.range) === {json.dumps(json.dumps(whole, separators=(',', ':')))}")
        press(opened, "x", "log")
        opened.wait(f"{loss}.layout.xaxis.type === 'log' && {heat}.layout.xaxis.type === 'log'")
        press(opened, "y", "log")
        opened.wait(f"{loss}.layout.yaxis.type === 'log'")
        press(opened, "Across", "tokens")
        opened.wait(f"{loss}.layout.xaxis.title.text === 'tokens' && {heat}.layout.xaxis.title.text === 'tokens'")
        steps = opened.value(f"{loss}.data[0].x.slice(0, 3)")
        assert steps == [256, 512, 768], steps
        press(opened, "Theme", "dark")
        opened.wait("document.documentElement.dataset.theme === 'dark'")
        # The raw curve and the smoothed one; then the raw one alone.
        traces = opened.value(f"{loss}.data.length")
        opened.value("(() => { const s = document.getElementById('smooth'); s.value = 0; s.dispatchEvent(new Event('input')); })()")
        opened.wait(f"{loss}.data.length === {traces} - 1")
        assert opened.value(f"{loss}.data[0].y[24]") is None, "the step without a loss is a gap"
        settle(opened)


def test_numbers_are_those_of_the_run():
    with workspace() as folder, browser.Browser() as window:
        run = rich(folder)
        made = report(run)
        lines = journal(run)
        opened = look(window, made["out"], "numbers", made["plots"])
        opened.value("(() => { const s = document.getElementById('smooth'); s.value = 0; s.dispatchEvent(new Event('input')); })()")
        opened.wait("document.getElementById('figure-1').data.length === 2")
        drawn = opened.value("document.getElementById('figure-1').data.map((t) => [t.x, t.y])")
        losses = [line["loss"] for line in lines]
        assert drawn[0][0] == [line["step"] for line in lines]
        assert all((a is None) == (b is None) and (a is None or abs(a - b) <= 1e-6 * b) for a, b in zip(drawn[0][1], losses)), drawn[0]
        validated = [line for line in lines if "eval" in line]
        assert drawn[1][0] == [line["step"] for line in validated]
        assert all(abs(a - line["eval"]["validation"]["nll"]) < 1e-5 for a, line in zip(drawn[1][1], validated))
        entropy = "[...document.querySelectorAll('figure')].find((f) => f.innerText.startsWith('Attention entropy')).querySelector('.plot')"
        rows, labels = opened.value(f"[{entropy}.data[0].customdata.length, {entropy}.layout.yaxis.ticktext]")
        assert rows == 24 and labels == ["0", "1", "2", "3", "4", "5"], (rows, labels)
        # What was sampled is text, whatever it holds.
        quoted = opened.value("[...document.querySelectorAll('blockquote')].map((q) => q.textContent)")
        assert quoted[0] == f"The people of step 20 {HOSTILE}" and len(quoted) == 4, quoted
        assert "raw \ufffd" in quoted[3] and opened.value("window.broken === undefined")
        settle(opened)


def test_runs_compared():
    with workspace() as folder, browser.Browser() as window:
        one, other = rich(folder), train(folder, "higher <b>lr", **{
            "optim.lr": 0.01, "model.num_hidden_layers": 3, "train.steps": None, "optim.schedule.decay": None, "optim.schedule.name": "constant",
            "stages": [{"name": "early", "steps": 30}, {"name": "late", "steps": 30, "optim": {"lr": 0.002, "schedule": {"name": "constant", "warmup": 0}}}]})
        write_measures(other, layers=3, seed=2)
        out = os.path.join(folder, "compared.html")
        made = report(one, other, "--out", out)
        for width, dark in ((1280, False), (390, True)):
            opened = look(window, out, "compared", made["plots"], width, dark)
            said = opened.value("document.body.innerText")
            assert "optim.lr" in said and "model.num_hidden_layers" in said and "higher <b>lr" in said and "stage late" in said and "2 stages." in said
            differing = opened.value("document.getElementById('differs').parentElement.innerText")
            assert "optim.betas" not in differing and "build.self" not in differing, differing
            names = opened.value("[...new Set(document.getElementById('figure-2').data.map((t) => t.line.color))]")
            assert len(names) == 2, names
            press(opened, "Runs", "base")
            opened.wait("[...new Set(document.getElementById('figure-2').data.map((t) => t.line.color))].length === 1")
            settle(opened)


def test_missing_parts_are_said():
    with workspace() as folder, browser.Browser() as window:
        run = train(folder, "one step", **{"train.steps": 1, "eval.every": 0, "metrics.tensorboard": False, **CONSTANT})
        bare = os.path.join(folder, "bare")
        os.makedirs(bare)
        shutil.copy(os.path.join(run, "run.yaml"), bare)
        nan = os.path.join(folder, "nan")
        shutil.copytree(run, nan)
        write_journal(nan, [{"step": n, "tokens": 64 * n, "loss": None, "grad_norm": None, "lr": 0, "seconds": 0.0, "digest": "0"} for n in range(1, 30)])
        with open(os.path.join(nan, "journal.jsonl"), "a") as file:
            file.write('{"step":30,"lo')
        os.makedirs(os.path.join(nan, "probes"))
        with open(os.path.join(nan, "probes", "bad.jsonl"), "w") as file:
            file.write("no JSON\n")
        with open(os.path.join(nan, "samples.jsonl"), "w") as file:
            file.write("no JSON\n")
        foreign = os.path.join(folder, "foreign")
        write_series(foreign, "weight_norm", {(s, f"gpt_neox.layers.{n}.attention.dense.weight"): s + n for s in (0, 1, 512, 1000) for n in range(6)})
        expected = {
            run: ["No probes", "No analysis", "as planned"],
            bare: ["No journal.jsonl", "No checkpoints", "nothing to draw"],
            nan: ["The last line of the journal is torn", "29 steps without a finite loss", "bad.jsonl is not shown", "samples.jsonl: line 1"],
            foreign: ["Weight norm", "attention.dense"],
        }
        for path, words in expected.items():
            made = report(path)
            opened = window.open(made["out"], width=390, height=844)
            opened.wait("document.documentElement.dataset.ready === 'true'")
            said = opened.value("document.body.innerText")
            for word in words:
                assert word in said, (path, word, said)
            assert opened.value("document.querySelectorAll('.plot').length") == made["plots"], made
            over = opened.value(OVERFLOW)
            assert over["scroll"] <= 0 and not over["wide"], (path, over)
            if PICTURES:
                opened.picture(os.path.join(PICTURES, f"{os.path.basename(path)}.png"))
            settle(opened)
        nowhere = cairn("report", os.path.join(folder, "nowhere"), check=False)
        assert nowhere.returncode == 2 and "nowhere" in nowhere.stderr, nowhere.stderr
        empty = os.path.join(folder, "empty")
        os.makedirs(empty)
        neither = cairn("report", empty, check=False)
        assert neither.returncode == 2 and "neither a run" in neither.stderr, neither.stderr
        damaged = open(os.path.join(run, "journal.jsonl")).read()
        with open(os.path.join(run, "journal.jsonl"), "w") as file:
            file.write(damaged.replace('"loss":', '"lost":') + damaged)
        page = report(run)["out"]
        assert "is damaged" in open(page, encoding="utf-8").read()


def test_a_long_journal_stays_quick():
    with workspace() as folder, browser.Browser() as window:
        run = train(folder, "long", **{"train.steps": 2, "eval.every": 0, **CONSTANT})
        draw = numpy.random.default_rng(3)
        n = 100000
        loss = 3 + 6 * numpy.exp(-numpy.arange(n) / 9000) + draw.normal(0, 0.05, n)
        loss[54321] = 41.5  # one spike, which no thinning may lose
        write_journal(run, [{"step": i + 1, "tokens": 4096 * (i + 1), "loss": float(loss[i]), "grad_norm": float(abs(draw.normal(1, 0.1))), "lr": 1e-3,
                             "accuracy": 0.3, "seconds": 0.5, "digest": "0" * 32} for i in range(n)])
        start = time.monotonic()
        made = report(run)
        seconds = time.monotonic() - start
        assert made["bytes"] < 4e6, made
        start = time.monotonic()
        opened = look(window, made["out"], "long", made["plots"])
        shown = time.monotonic() - start
        highest = opened.value("Math.max(...document.getElementById('figure-1').data.flatMap((t) => t.y))")
        assert highest == 41.5, highest
        points = opened.value("Math.max(...[...document.querySelectorAll('.plot')].flatMap((p) => p.data.map((t) => t.x.length)))")
        assert points <= 2000, points
        said = opened.value("document.body.innerText")
        assert "A point stands for 67 steps: band from the lowest to the highest" in said, said
        print(f"      100,000 lines: report in {seconds:.2f} s, {made['bytes'] / 1e6:.1f} MB, drawn in {shown:.2f} s")
        settle(opened)


if __name__ == "__main__":
    if not browser.program():
        print("skipped: no Chromium here (Debian: chromium)")
        sys.exit(77)
    main([test_one_run_in_four_views, test_what_was_really_measured, test_controls_change_the_plots, test_numbers_are_those_of_the_run, test_runs_compared, test_missing_parts_are_said,
          test_a_long_journal_stays_quick])
