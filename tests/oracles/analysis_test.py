"""diff, merge and analyze against numpy, torch and transformers; foreign series made with transformers."""
import json
import math
import os
import re

import h5py
import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

from harness import cairn, journal, main, run_file, text, workspace

STEPS = list(range(5, 41, 5))


def train(folder, name="run", **changes):
    path = os.path.join(folder, "text.txt")
    with open(path, "w") as file:
        file.write(text())
    run = os.path.join(folder, name)
    cairn("train", run_file(folder, path, **changes), "--run", run, "--json")
    return run


def checkpoint(run, step):
    return os.path.join(run, "checkpoints", f"step-{step:08}")


def weights(folder):
    return {name: t.double().numpy() for name, t in load_file(os.path.join(folder, "model.safetensors")).items()}


def close(found, expected, tolerance=1e-9):
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert np.allclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True), np.abs(found - expected).max()


def test_diff():
    with workspace() as folder:
        run = train(folder)
        a, b = weights(checkpoint(run, 5)), weights(checkpoint(run, 40))
        out = json.loads(cairn("diff", run + "@5", run + "@40", "--json").stdout)
        assert out["changed"] == len(a) and not out["identical"], out["changed"]
        relative = [row["relative"] for row in out["tensors"]]
        assert relative == sorted(relative, reverse=True)
        for row in out["tensors"]:
            x, y = a[row["name"]].ravel(), b[row["name"]].ravel()
            close(row["norm_a"], np.linalg.norm(x))
            close(row["norm_difference"], np.linalg.norm(y - x))
            close(row["relative"], np.linalg.norm(y - x) / np.linalg.norm(x))
            close(row["cosine"], x @ y / np.linalg.norm(x) / np.linalg.norm(y))
            close(row["max_abs"], np.abs(y - x).max())
            assert row["differing"] == (x != y).sum()
        x, y = (np.concatenate([m[n].ravel() for n in sorted(a)]) for m in (a, b))
        close(out["total"]["relative"], np.linalg.norm(y - x) / np.linalg.norm(x))
        close(out["total"]["cosine"], x @ y / np.linalg.norm(x) / np.linalg.norm(y))
        table = cairn("diff", run + "@5", checkpoint(run, 40)).stdout
        assert "|B-A|/|A|" in table and out["tensors"][0]["name"] in table, table
        assert json.loads(cairn("diff", run, run, "--json").stdout)["identical"]
        assert cairn("diff", run, run, "--exit-code").returncode == 0
        assert cairn("diff", run + "@5", run, "--exit-code", check=False).returncode == 1
        pairs = json.loads(cairn("diff", run + "@5", run + "@20", run + "@40", "--json").stdout)["pairs"]
        assert len(pairs) == 2 and pairs[1]["a"].endswith("@20")

        other = train(folder, "other", **{"optim.lr": 0.001, "train.steps": 20})
        changes = {c["key"]: (c.get("a"), c.get("b")) for c in json.loads(cairn("diff", run, other + "@20", "--config", "--json").stdout)["changes"]}
        assert changes["optim.lr"] == (0.003, 0.001) and changes["train.steps"] == (40, 20), changes
        assert "optim.lr: 0.003 -> 0.001" in cairn("diff", run, other, "--config").stdout
        config = json.loads(cairn("diff", checkpoint(run, 5), checkpoint(run, 40), "--config", "--json").stdout)
        assert "identical" in config, config
        assert len(json.loads(cairn("diff", run, "--json").stdout)["pairs"]) == len(STEPS) - 1
        assert cairn("diff", checkpoint(run, 5), check=False).returncode == 2


# ---- merges, as their papers write them ----

def linear(c):
    return lambda models, base: sum(k * m for k, m in zip(c, models))


def ema(decay):
    def merge(models, base):
        e = models[0]
        for m in models[1:]:
            e = decay * e + (1 - decay) * m
        return e
    return merge


def wsm(schedule):
    def merge(models, base):
        out, k = models[0].copy(), len(models)
        for i in range(1, k):  # each update scaled by the schedule
            out += schedule(i / k) * (models[i] - models[i - 1])
        return out
    return merge


def slerp(t):
    def merge(models, base):
        a, b = models
        cosine = (a.ravel() @ b.ravel()) / np.linalg.norm(a) / np.linalg.norm(b)
        if abs(cosine) > 0.9995:
            return (1 - t) * a + t * b
        angle = np.arccos(cosine)
        return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
    return merge


def task_arithmetic(c, scale):
    return lambda models, base: base + scale * sum(k * (m - base) for k, m in zip(c, models))


def ties(density, c, scale):
    def merge(models, base):
        deltas = []
        for m in models:
            d = (m - base).ravel()
            order = np.argsort(-np.abs(d), kind="stable")[:max(1, int(density * d.size))]
            kept = np.zeros_like(d)
            kept[order] = d[order]
            deltas.append(kept)
        d, k = np.stack(deltas), np.array(c)[:, None]
        elected = np.where((d * k).sum(0) >= 0, 1, -1)
        agree = np.sign(d) == elected
        divisor = (k * agree).sum(0)
        return base + scale * ((d * k * agree).sum(0) / np.where(divisor == 0, 1, divisor)).reshape(base.shape)
    return merge


U = np.uint64


def mix64(x):
    with np.errstate(over="ignore"):
        x = x + U(0x9E3779B97F4A7C15)
        x = (x ^ x >> U(30)) * U(0xBF58476D1CE4E5B9)
        x = (x ^ x >> U(27)) * U(0x94D049BB133111EB)
        return x ^ x >> U(31)


def dare_uniform(seed, model, name, count):
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        key = mix64(mix64(np.array([seed], U)) ^ mix64(np.array([(h + model) % 2**64], U)))
        return (mix64(key + np.arange(count, dtype=U)) >> U(11)) * 2.0**-53


def dare(density, seed, scale):
    def merge(models, base, name):
        out = base.copy()
        for k, m in enumerate(models):
            keep = (dare_uniform(seed, k, name, base.size) < density).reshape(base.shape)
            out += scale * keep * (m - base) / density
        return out
    return merge


def test_merges():
    with workspace() as folder:
        run = train(folder)
        far = train(folder, "far", **{"seed": 8})
        states = [run + f"@{s}" for s in (25, 30, 35, 40)]
        trail = [weights(checkpoint(run, s)) for s in (25, 30, 35, 40)]
        base, tuned = weights(checkpoint(run, 5)), [weights(checkpoint(run, 40)), weights(checkpoint(far, 40))]
        away = [run + "@40", far + "@40", "--base", run + "@5"]
        cases = [
            ("uniform", states, [], trail, linear([0.25] * 4)),
            ("weighted", states, ["--weights", "1,2,3,4"], trail, linear([0.1, 0.2, 0.3, 0.4])),
            ("weighted", states, ["--weights", "1,-1,0.5,0", "--normalize", "false"], trail, linear([1, -1, 0.5, 0])),
            ("ema", states, ["--decay", "0.8"], trail, ema(0.8)),
            ("lawa", states, ["--last", "3"], trail, linear([0, 1 / 3, 1 / 3, 1 / 3])),
            ("lawa", [run + "@25:40:5"], ["--last", "2"], trail, linear([0, 0, 0.5, 0.5])),
            ("wsm", [run + "@stored"], ["--last", "4"], trail, wsm(lambda x: 1 - x)),
            ("wsm", states, [], trail, wsm(lambda x: 1 - x)),
            ("wsm", states, ["--schedule", "cosine"], trail, wsm(lambda x: (1 + math.cos(math.pi * x)) / 2)),
            ("wsm", states, ["--schedule", "1-sqrt"], trail, wsm(lambda x: 1 - math.sqrt(x))),
            ("slerp", [run, far], ["--t", "0.3"], tuned, slerp(0.3)),
            ("task_arithmetic", away, ["--weights", "1,0.5", "--lambda", "0.7"], tuned, task_arithmetic([1, 0.5], 0.7)),
            ("ties", away, ["--density", "0.3", "--weights", "1,2"], tuned, ties(0.3, [1, 2], 1)),
            ("dare", away, ["--density", "0.6", "--seed", "9", "--lambda", "0.5"], tuned, dare(0.6, 9, 0.5)),
        ]
        for number, (method, models, options, inputs, expected) in enumerate(cases):
            out = os.path.join(folder, f"merged-{number}")
            report = json.loads(cairn("merge", *models, "--out", out, "--method", method, *options, "--json").stdout)
            assert report["tensors"] == len(base) and report["method"] == method, report
            found = weights(out)
            assert list(found) and found.keys() == base.keys()
            for name in base:
                arguments = ([m[name] for m in inputs], base[name])
                want = expected(*arguments, name) if method == "dare" else expected(*arguments)
                assert np.array_equal(found[name], want.astype(np.float32)) or np.abs(found[name] - want).max() <= 1e-7 * max(1, np.abs(want).max()), (method, name)
            assert cairn("verify", out).returncode == 0
        with open(os.path.join(out, "MANIFEST.json")) as file:
            about = json.load(file)["about"]["merge"]
        assert about["method"] == "dare" and about["base"] == run + "@5" and [m["address"] for m in about["models"]] == [run + "@40", far + "@40"], about

        # A model like any other: transformers computes with it what Cairn does.
        out = os.path.join(folder, "merged-0")
        model, tokenizer = AutoModelForCausalLM.from_pretrained(out).float().eval(), AutoTokenizer.from_pretrained(out)
        reply = json.loads(cairn("generate", out, "--prompt", "The ", "--max-tokens", 12, "--temperature", 0, "--json").stdout)
        prompt = tokenizer("The ", return_tensors="pt")["input_ids"]
        assert reply["ids"] == model.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1]:].tolist()[:len(reply["ids"])]
        half = os.path.join(folder, "half")
        cairn("merge", *states, "--out", half, "--dtype", "bfloat16")
        assert AutoModelForCausalLM.from_pretrained(half, dtype="auto").dtype == torch.bfloat16
        for name, t in load_file(os.path.join(half, "model.safetensors")).items():
            mean = sum(m[name] for m in trail) / 4
            assert torch.equal(t, torch.from_numpy(mean).float().bfloat16()), name

        for arguments, status, *words in [
            ([*states, "--out", out], 1, "already"),
            ([*states, "--out", half + "2", "--method", "average"], 2, "average", "uniform"),
            ([*states, "--out", half + "2", "--density", "0.5"], 2, "density", "uniform"),
            ([*states, "--out", half + "2", "--method", "slerp"], 2, "exactly 2"),
            ([run, "--out", half + "2", "--method", "ties"], 2, "base"),
            ([*states, "--out", half + "2", "--method", "ema", "--decay", "1.5"], 2, "decay", "1.5"),
        ]:
            done = cairn("merge", *arguments, check=False)
            assert done.returncode == status and all(w in done.stderr for w in words), (arguments, done.returncode, done.stderr)
            assert not os.path.exists(half + "2")


def series_of(found, name):
    """{(step, tensor): value}"""
    return {(m["step"], m["name"]): np.array(m["value"], float) for m in found["series"][name]}


def clauset(x):
    x = np.sort(x[x > 0])
    best = (np.inf, np.nan)
    for xmin in np.unique(x)[:-1]:
        tail = x[x >= xmin]
        n = len(tail)
        alpha = 1 + n / np.log(tail / xmin).sum()
        distance = np.abs(1 - (xmin / tail) ** (alpha - 1) - np.arange(n) / n).max()
        if distance < best[0]:
            best = (distance, alpha)
    return best


def check_weight_metrics(found, states):
    """`states`: {step: {tensor: float64 array}}"""
    steps = sorted(states)
    get = {name: series_of(found, name) for name in found["series"]}
    flat = {s: np.concatenate([states[s][n].ravel() for n in sorted(states[s])]) for s in steps}
    first = steps[0]
    for k, s in enumerate(steps):
        everything = {**states[s], "": flat[s]}
        for name, w in everything.items():
            w = w.ravel()
            close(get["norm"][s, name], np.linalg.norm(w))
            close(get["rms"][s, name], np.sqrt((w**2).mean()))
            close(get["sparsity"][s, name], [(np.abs(w) <= t).mean() for t in (0, 1e-6, 1e-4, 1e-3, 1e-2)])
            start = flat[first] if name == "" else states[first][name].ravel()
            close(get["drift"][s, name], np.linalg.norm(w - start))
            close(get["relative_drift"][s, name], np.linalg.norm(w - start) / np.linalg.norm(start) if (w != start).any() else 0)
            if k >= 1:
                before = flat[steps[k - 1]] if name == "" else states[steps[k - 1]][name].ravel()
                close(get["change"][s, name], np.linalg.norm(w - before))
                if np.linalg.norm(w) and np.linalg.norm(before):
                    close(get["change_cosine"][s, name], w @ before / np.linalg.norm(w) / np.linalg.norm(before))
            if k >= 2:
                two = flat[steps[k - 2]] if name == "" else states[steps[k - 2]][name].ravel()
                d, e = w - before, before - two
                if np.linalg.norm(d) and np.linalg.norm(e):
                    close(get["change_direction"][s, name], d @ e / np.linalg.norm(d) / np.linalg.norm(e))
            if name == "":
                continue
            if w.std() > 0:
                close(get["kurtosis"][s, name], ((w - w.mean()) ** 4).mean() / w.var() ** 2, 1e-7)
            close(get["beyond_6sigma"][s, name], (np.abs(w - w.mean()) > 6 * w.std()).mean())
            close(get["max_over_rms"][s, name], np.abs(w).max() / np.sqrt((w**2).mean()) if w.any() else 0)
            if states[s][name].ndim == 2:
                sigma = np.linalg.svd(states[s][name], compute_uv=False)
                close(get["singular_values"][s, name], sigma, 1e-10)
                p = sigma / sigma.sum()
                close(get["effective_rank"][s, name], np.exp(-(p[p > 0] * np.log(p[p > 0])).sum()))
                close(get["stable_rank"][s, name], (sigma**2).sum() / sigma[0] ** 2)
                distance, alpha = clauset(sigma**2)
                close(get["power_law_distance"][s, name], distance, 1e-6)
                close(get["power_law_alpha"][s, name], alpha, 1e-6)
            else:
                assert (s, name) not in get["effective_rank"]


def test_weight_metrics_and_cache():
    with workspace() as folder:
        run = train(folder, **{"checkpoints.every": 10})
        first = json.loads(cairn("analyze", run, "--json").stdout)
        steps = [s["step"] for s in first["states"]]
        assert steps == [10, 20, 30, 40], steps
        check_weight_metrics(first, {s: weights(checkpoint(run, s)) for s in steps})
        again = json.loads(cairn("analyze", run, "--json").stdout)
        assert again["measured"] == 0 and again["cached"] == first["measured"] > 0
        assert again["series"] == first["series"]
        # The files hold the same, for h5py and line by line.
        for name, values in first["series"].items():
            with open(os.path.join(run, "analysis", name + ".jsonl")) as file:
                assert [json.loads(line) for line in file] == values, name
            with h5py.File(os.path.join(run, "analysis", name + ".h5")) as file:
                for tensor in file["values"]:
                    assert list(file["steps"][tensor]) == [v["step"] for v in values if v["name"] == ("" if tensor == "model" else tensor)]
                    close(file["values"][tensor][-1], [v["value"] for v in values if v["name"] == ("" if tensor == "model" else tensor)][-1])
        # Other settings, other results; what is not asked for stays.
        some = json.loads(cairn("analyze", run, "sparsity", "--thresholds", "0.5", "--json").stdout)
        assert some["measured"] == 4 and list(some["series"]) == ["sparsity"] and np.shape(some["series"]["sparsity"][0]["value"]) == (1,)
        assert os.path.exists(os.path.join(run, "analysis", "norm.h5"))
        assert "norm" in cairn("analyze", run, "norm", "--jobs", 1).stdout


def test_trajectory_states():
    """The trajectory's steps join the stored ones; where it keeps bfloat16, pairs are compared in bfloat16."""
    for dtype in ("float32", "bfloat16"):
        with workspace() as folder:
            run = train(folder, **{"train.steps": 20, "checkpoints.every": 10, "trajectory.every": 4, "trajectory.dtype": dtype})
            found = json.loads(cairn("analyze", run, "norm", "change", "drift", "--json").stdout)
            assert [s["step"] for s in found["states"]] == [4, 8, 10, 12, 16, 20], found["states"]
            get = {name: series_of(found, name) for name in found["series"]}
            states = {s: weights(checkpoint(run, s)) for s in (10, 20)}
            with h5py.File(os.path.join(run, "trajectory", "trajectory.h5")) as file:
                steps = list(file["steps"])
                for s in (4, 8, 12, 16):
                    states[s] = {name: file["weights"][name][steps.index(s)].astype(np.float64) for name in file["weights"]}

            def kept(w):
                return w if dtype == "float32" else torch.from_numpy(w).float().bfloat16().double().numpy()

            for before, s in zip([4, 8, 10, 12, 16], [8, 10, 12, 16, 20]):
                for name, w in states[s].items():
                    close(get["norm"][s, name], np.linalg.norm(w))
                    close(get["change"][s, name], np.linalg.norm(kept(w) - kept(states[before][name])))
                    close(get["drift"][s, name], np.linalg.norm(kept(w) - kept(states[4][name])))
            again = json.loads(cairn("analyze", run, "norm", "change", "drift", "--json").stdout)
            assert again["measured"] == 0 and again["series"] == found["series"]
            stored = json.loads(cairn("analyze", run, "norm", "--stored", "--json").stdout)
            assert [s["step"] for s in stored["states"]] == [10, 20] and stored["measured"] == 0
            # Model metrics take the stored ones alone; any other step by its address, replayed.
            losses = json.loads(cairn("analyze", run, "averaged", "--json").stdout)
            assert [m["step"] for m in losses["series"]["last_loss"]] == [10, 20]
            between = json.loads(cairn("analyze", run + "@8:12:2", "change", "--json").stdout)
            assert [s["step"] for s in between["states"]] == [8, 10, 12]
            if dtype == "float32":
                close(series_of(between, "change")[10, ""], get["change"][10, ""])


def test_a_trajectory_alone():
    """Weights need no checkpoint."""
    with workspace() as folder:
        run = train(folder, **{"train.steps": 12, "checkpoints.every": 0, "checkpoints.at_end": False, "trajectory.every": 4, "trajectory.dtype": "float32"})
        done = cairn("analyze", run, "norm", "change", "--json")
        found = json.loads(done.stdout)
        assert [s["step"] for s in found["states"]] == [4, 8, 12] and "no checkpoint" in done.stderr, (found["states"], done.stderr)
        get = {name: series_of(found, name) for name in found["series"]}
        with h5py.File(os.path.join(run, "trajectory", "trajectory.h5")) as file:
            for name in file["weights"]:
                rows = file["weights"][name][:].astype(np.float64)
                for k, s in enumerate((4, 8, 12)):
                    close(get["norm"][s, name], np.linalg.norm(rows[k]))
                    if k:
                        close(get["change"][s, name], np.linalg.norm(rows[k] - rows[k - 1]))
        assert found["measured"] > 0 and len(json.loads(cairn("analyze", run, "--json").stdout)["series"]) > 5
        refused = cairn("analyze", run, "learning", check=False)
        assert refused.returncode == 2 and "RUN@A:B:STRIDE" in refused.stderr, refused.stderr
        assert cairn("analyze", run, "norm", "--stored", check=False).returncode == 1


def test_memorised_text_is_what_the_steps_read():
    """Settings that were changed later do not change what a step read."""
    with workspace() as folder:
        run = train(folder, **{"data.context": 64, "train.steps": 20, "optim.lr": 0.01})
        ask = lambda out: json.loads(cairn("analyze", run, "memorised", "--out", os.path.join(folder, out), "--json").stdout)["series"]
        expected = ask("first")
        with open(os.path.join(run, "build.json")) as file:
            build = json.load(file)
        build["former_settings"] = [{"last_step": 20, "settings": json.loads(json.dumps(build["settings"]))}]
        build["settings"]["seed"] = {"init": 1234, "data": 99, "dropout": 1234, "sample": 1234}
        for name, content in (("build.json", build), ("run.yaml", build["settings"])):
            with open(os.path.join(run, name), "w") as file:
                json.dump(content, file)
        assert ask("second") == expected
        del build["former_settings"]
        with open(os.path.join(run, "build.json"), "w") as file:
            json.dump(build, file)
        assert ask("third") != expected, "the order makes no difference: the test shows nothing"


def batches(ids, context, tokens):
    last = min(tokens, len(ids) - 1)
    return [(ids[b:min(b + context, last)], ids[b + 1:min(b + context, last) + 1]) for b in range(0, last, context)]


def predictions(model, rows):
    nll, argmax = [], []
    with torch.no_grad():
        for inputs, targets in rows:
            logits = model(torch.tensor([inputs])).logits[0].double()
            nll += torch.nn.functional.cross_entropy(logits, torch.tensor(targets), reduction="none").tolist()
            argmax += (logits.argmax(-1) == torch.tensor(targets)).tolist()
    return np.array(nll), np.array(argmax)


def test_model_metrics():
    with workspace() as folder:
        run = train(folder, **{"data.context": 64, "train.steps": 60, "checkpoints.every": 15, "optim.lr": 0.01})
        steps = [15, 30, 45, 60]
        given = os.path.join(folder, "given.txt")
        with open(given, "w") as file:
            file.write(text(documents=2, seed=3)[:400])
        found = json.loads(cairn("analyze", run, "barrier", "averaged", "learning", "memorised", "--text", given, "--context", 32, "--last", 3, "--samples", 12, "--json").stdout)
        get = {name: series_of(found, name) for name in found["series"]}
        models = {s: AutoModelForCausalLM.from_pretrained(checkpoint(run, s)).float().eval() for s in steps}
        ids = AutoTokenizer.from_pretrained(checkpoint(run, 60))(open(given).read())["input_ids"]
        rows = batches(ids, 32, 2048)

        def mixed(parts):
            model = AutoModelForCausalLM.from_pretrained(checkpoint(run, 60)).float().eval()
            states = [(c, models[s].state_dict()) for c, s in parts]
            model.load_state_dict({k: sum(c * state[k].double() for c, state in states).float() for k in model.state_dict()})
            return predictions(model, rows)[0].mean()

        nll = {s: predictions(models[s], rows) for s in steps}
        for a, b in zip(steps, steps[1:]):
            line = [mixed([(1 - t, a), (t, b)]) for t in np.linspace(0, 1, 11)]
            close(get["barrier_losses"][b, ""], line, 2e-5)
            close(get["barrier"][b, ""], max(l - (1 - t) * line[0] - t * line[-1] for t, l in zip(np.linspace(0, 1, 11), line)), 4e-5)
        for k, s in enumerate(steps):
            last = steps[max(0, k - 2):k + 1]
            close(get["averaged_loss"][s, ""], mixed([(1 / len(last), t) for t in last]), 2e-5)
            close(get["last_loss"][s, ""], nll[s][0].mean(), 2e-5)
            close(get["token_nll"][s, ""], nll[s][0], 1e-4)
            close(get["token_argmax"][s, ""], nll[s][1])
        right = np.stack([nll[s][1] for s in steps])
        stays = np.flip(np.cumprod(np.flip(right, 0), 0), 0)
        ever = np.maximum.accumulate(right, 0)
        for k, s in enumerate(steps):
            close(get["learned"][s, ""], stays[k].mean())
            close(get["forgotten"][s, ""], (ever[k] & ~right[k]).mean())
        close(get["learned_step"][60, ""], [steps[list(c).index(1)] if c.any() else np.nan for c in stays.T])
        close(get["forgettings"][60, ""], (right[:-1] & ~right[1:]).sum(0))
        assert get["learned"][60, ""] > 0.1, "nothing was learnt: the test shows nothing"

        seen = get["memorised_step"][60, ""]
        assert len(seen) == 12 and seen[0] == 1 and seen[-1] == 60, seen
        # The sequences of those steps, as `data show` gives them: one row of each has the length that was found.
        for k, s in enumerate(seen):
            shown = json.loads(cairn("data", "show", f"{run}@{int(s)}", "--json").stdout)
            rows64 = torch.tensor([sequence["ids"][:64] for sequence in shown["sequences"]])
            out = rows64[:, :32]
            with torch.no_grad():
                for _ in range(32):  # greedy
                    out = torch.cat([out, models[60](out).logits[:, -1:].argmax(-1)], 1)
            lengths = {next((i for i in range(32) if a[32 + i] != b[32 + i]), 32) for a, b in zip(out.tolist(), rows64.tolist())}
            assert get["memorised_length"][60, ""][k] in lengths, (s, lengths)
        for s in steps:
            exact = get["memorised_length"][s, ""] == 32
            close(get["memorised"][s, ""], exact[seen <= s].mean())
            if (seen > s).any():
                close(get["memorised_unseen"][s, ""], exact[seen > s].mean())

        # Without --text: the validation set.
        own = json.loads(cairn("analyze", run, "learning", "--json").stdout)
        assert len(own["series"]["token_nll"][0]["value"]) > 100


def test_a_run_can_memorise():
    """Eight sequences again and again: in the end they are known by heart, in the beginning not."""
    with workspace() as folder:
        path = os.path.join(folder, "few.txt")
        with open(path, "w") as file:
            file.write(text(documents=1, seed=4)[:600])
        run = os.path.join(folder, "few")
        cairn("train", run_file(folder, path, **{"data.context": 64, "train.steps": 150, "train.batch": 8, "checkpoints.every": 0, "checkpoints.at": [10], "data.validation_fraction": 0,
              "model.hidden_size": 64, "model.intermediate_size": 128, "optim.lr": 0.01, "optim.weight_decay": 0.0}), "--run", run, "--json")
        found = json.loads(cairn("analyze", run, "memorised", "--json").stdout)
        get = series_of(found, "memorised")
        assert get[10, ""] < 0.2 and get[150, ""] > 0.8, get
        refused = cairn("analyze", run, "learning", check=False)
        assert refused.returncode == 2 and "--text" in refused.stderr, refused.stderr


def make_series(folder, dtype):
    torch.manual_seed(0)
    config = GPTNeoXConfig(vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
    model = GPTNeoXForCausalLM(config)
    tokenizer = os.path.join(folder, "tokens")
    states = {}
    for step in (0, 16, 128):
        with torch.no_grad():
            for p in model.parameters():
                p += 0.02 * torch.randn_like(p)
        path = os.path.join(folder, f"{str(dtype)[6:]}-step{step}")
        model.to(dtype).save_pretrained(path)
        model.float()
        for name in os.listdir(tokenizer):
            with open(os.path.join(tokenizer, name)) as a, open(os.path.join(path, name), "w") as b:
                b.write(a.read())
        states[step] = weights(path)
    return os.path.join(folder, f"{str(dtype)[6:]}-step{{N}}"), states


def page_data(page):
    with open(page, encoding="utf-8") as file:
        return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', file.read(), re.S).group(1))


def test_foreign_series():
    with workspace() as folder:
        run = train(folder, **{"train.steps": 2, "optim.schedule.warmup": 0, "optim.schedule.decay": 1})
        os.makedirs(os.path.join(folder, "tokens"))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            with open(os.path.join(checkpoint(run, 2), name)) as a, open(os.path.join(folder, "tokens", name), "w") as b:
                b.write(a.read())
        given = os.path.join(folder, "text.txt")
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            pattern, states = make_series(folder, dtype)
            out = os.path.join(folder, "analysis-" + str(dtype)[6:])
            found = json.loads(cairn("analyze", pattern, "--out", out, "--json").stdout)
            assert [s["step"] for s in found["states"]] == [0, 16, 128] and os.path.exists(os.path.join(out, "norm.h5"))
            check_weight_metrics(found, states)
            assert json.loads(cairn("analyze", pattern, "--out", out, "--json").stdout)["measured"] == 0
            path = pattern.replace("{N}", "128")
            model = AutoModelForCausalLM.from_pretrained(path).float().eval()
            ids = AutoTokenizer.from_pretrained(path)(open(given).read())["input_ids"]
            nll = json.loads(cairn("analyze", pattern, "learning", "--text", given, "--tokens", 100, "--out", out, "--json").stdout)
            close(series_of(nll, "token_nll")[128, ""], predictions(model, batches(ids, 64, 100))[0], 1e-4)
            evaluated = json.loads(cairn("eval", path, "--text", given, "--json").stdout)
            assert evaluated["tokens"] == len(ids) - 1
            lines = [json.loads(line) for line in cairn("eval", pattern, "--text", given, "--json").stdout.splitlines()]
            assert [line["step"] for line in lines] == [0, 16, 128], lines
            for line in lines:
                assert line["address"] == pattern.replace("{N}", str(line["step"])), line
                model = AutoModelForCausalLM.from_pretrained(line["address"]).float().eval()
                close(line["nll"], predictions(model, batches(ids, 64, len(ids)))[0].mean(), 1e-5)
            assert {k: lines[2][k] for k in ("tokens", "nll", "bits_per_byte")} == evaluated
            # What analyze wrote is what a report shows; the series itself is measured first.
            page = json.loads(cairn("report", out, "--json").stdout)
            assert page["plots"] > 0 and os.path.getsize(page["out"]) == page["bytes"], page
            with open(page["out"]) as file:
                html = file.read()
            assert "effective_rank" in html and "gpt_neox.embed_in.weight" in html
            with open(os.path.join(folder, "series.yaml"), "w") as file:
                json.dump([{"step": step, "path": pattern.replace("{N}", str(step))} for step in (16, 128)], file)
            for models, steps in ((pattern, [0, 16, 128]), (os.path.join(folder, "series.yaml"), [16, 128])):
                out = os.path.join(folder, str(dtype)[6:] + ".html")
                for _ in range(2):  # the second from what the first measured
                    again = json.loads(cairn("report", models, "--out", out, "--json").stdout)
                    assert again["plots"] > 0 and again["out"] == out, again
                data = page_data(out)
                assert data["runs"][0]["name"] == os.path.basename(models) and data["runs"][0]["path"] == models, data["runs"][0]
                layers = {measure["metric"]: measure for measure in data["runs"][0]["measures"] if measure["kind"] == "layers"}
                assert layers["effective_rank"]["steps"] == steps, layers["effective_rank"]["steps"]
            refused = cairn("report", folder, "--out", os.path.join(folder, "no.html"), check=False)
            assert refused.returncode == 2 and "cairn analyze" in refused.stderr and "--out DIR" in refused.stderr, refused.stderr
            refused = cairn("report", os.path.join(folder, "none{N}"), "--out", os.path.join(folder, "no.html"), check=False)
            assert refused.returncode != 0 and "none{N}" in refused.stderr and not os.path.exists(os.path.join(folder, "no.html")), refused.stderr
            merged = os.path.join(folder, "merged-" + str(dtype)[6:])
            cairn("merge", pattern, "--out", merged)
            assert AutoModelForCausalLM.from_pretrained(merged, dtype="auto").dtype == dtype
            for name, t in load_file(os.path.join(merged, "model.safetensors")).items():
                assert torch.equal(t, torch.from_numpy(sum(1 / 3 * s[name] for s in states.values())).float().to(dtype)), name
            pairs = json.loads(cairn("diff", pattern, "--json").stdout)["pairs"]
            assert len(pairs) == 2
            x, y = states[16]["gpt_neox.embed_in.weight"], states[128]["gpt_neox.embed_in.weight"]
            row = next(t for t in pairs[1]["tensors"] if t["name"] == "gpt_neox.embed_in.weight")
            close(row["relative"], np.linalg.norm(y - x) / np.linalg.norm(x))
        refused = cairn("analyze", pattern, "memorised", check=False)
        assert refused.returncode == 2 and "run" in refused.stderr, refused.stderr


def test_mistakes():
    with workspace() as folder:
        run = train(folder, **{"train.steps": 10, "optim.schedule.decay": 4})
        other = train(folder, "other", **{"train.steps": 10, "optim.schedule.decay": 4, "model.hidden_size": 48})
        listed = os.path.join(folder, "mixed.yaml")
        with open(listed, "w") as file:
            json.dump([{"step": 1, "path": checkpoint(run, 5)}, {"step": 2, "path": checkpoint(other, 5)}], file)
        for arguments, status, *words in [
            (["analyze", run, "spectra"], 2, "spectra", "did you mean 'spectrum'"),
            (["analyze", run, "effective_rnk"], 2, "effective_rank"),
            (["analyze", run, "expert_load"], 2, "no experts"),
            (["analyze", run, "barrier", "--points", 2], 2, "points", "found 2"),
            (["analyze", run, "learning", "--context", 65], 2, "context", "64"),
            (["analyze", run, "memorised"], 2, "64 tokens"),
            (["analyze", listed], 1, "shape"),
            (["merge", run, other, "--out", os.path.join(folder, "no")], 1, "shape"),
            (["analyze", os.path.join(folder, "none")], None, "none"),
        ]:
            done = cairn(*arguments, check=False)
            assert done.returncode == (status or done.returncode) != 0 and all(w in done.stderr for w in words), (arguments, done.returncode, done.stderr)
        shapes = json.loads(cairn("diff", run, other, "--json").stdout)
        assert shapes["shape"] > 0 and shapes["total"]["elements"] >= 0


if __name__ == "__main__":
    main([test_diff, test_merges, test_weight_metrics_and_cache, test_trajectory_states, test_a_trajectory_alone, test_memorised_text_is_what_the_steps_read, test_model_metrics, test_a_run_can_memorise, test_foreign_series, test_mistakes])
