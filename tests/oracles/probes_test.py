"""Probes and CKA against transformers, torch.autograd and numpy in float64, on the weights and batches of real runs; and a
replay with every probe on verifies every step."""
# labels:
import json
import os
import shutil
import warnings

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
warnings.filterwarnings("ignore")

import h5py  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from harness import cairn, main, run_file, text, workspace  # noqa: E402

STEPS, CONTEXT, BATCH, MICRO = 6, 24, 4, 2
SEED = 7  # of the run files
FIXED = "A cairn marks a trail. Each stone is a step, and the next one stands in sight of the last."
PROBES = ["activation_kurtosis", "activation_rms", "attention_entropy", "grad_cosine", "grad_norm", "hessian", "induction", "noise_scale", "token_loss",
          "update_ratio"]

# Every order of norms and residuals, soft limits of what is seen, norms of queries and keys, fused and tied weights.
FAMILIES = {
    "llama": {},
    "gpt_neox": {"model.tie_word_embeddings": False, "model.num_key_value_heads": None},
    "gemma3_text": {"model.head_dim": 8, "model.sliding_window": 7, "model.layer_types": ["sliding_attention", "full_attention"]},
    "olmo2": {},
}


def documents():
    return text(documents=12, seed=3).split("<|endoftext|>")


def train(folder, family, **changes):
    path, run = os.path.join(folder, "text.txt"), os.path.join(folder, family)
    with open(path, "w") as file:
        file.write("<|endoftext|>".join(documents()))
    keys = {"model.model_type": family, "data.context": CONTEXT, "data.validation_fraction": 0.0, "train.steps": STEPS, "train.batch": BATCH,
            "train.micro_batch": MICRO, "train.lanes": 2, "optim.lr": 0.02, "optim.schedule.name": "constant", "optim.schedule.warmup": 0,
            "optim.schedule.decay": None, "checkpoints.every": 1, "checkpoints.log_spaced": True, **FAMILIES[family], **changes}
    settings = run_file(folder, path, **keys)
    with open(settings) as file:
        tree = json.load(file)
    tree["model"] = {key: value for key, value in tree["model"].items() if value is not None}  # what the family does not know
    with open(settings, "w") as file:
        json.dump(tree, file)
    cairn("train", settings, "--run", run, "--json")
    return run


def fixed_text(folder):
    path = os.path.join(folder, "fixed.txt")
    with open(path, "w") as file:
        file.write(FIXED)
    return path


def replay(run, folder, *more, probes=("all",)):
    arguments = [part for name in probes for part in ("--probe", name)]
    done = cairn("replay", run, *arguments, "--text", fixed_text(folder), "--json", *more)
    report = json.loads(done.stdout)
    assert report["verified"] and report["first_divergence"] is None, report
    return report


def series(run, metric):
    """{(step, name): array}, the same from both files."""
    with open(os.path.join(run, "probes", metric + ".jsonl")) as file:
        lines = [json.loads(line) for line in file]
    found = {(line["step"], line["name"]): np.array(line["value"], dtype=np.float64) for line in lines}
    with h5py.File(os.path.join(run, "probes", metric + ".h5")) as file:
        assert file.attrs["metric"] == metric
        for name in file["values"]:
            for step, value in zip(file["steps"][name][()], file["values"][name][()]):
                assert np.array_equal(value, found[step, "" if name == "model" else name], equal_nan=True), (metric, step, name)
        assert sum(len(file["steps"][name]) for name in file["steps"]) == len(found), metric
    return found


def folder_of(run, step):
    return os.path.join(run, "checkpoints", f"step-{step:08}")


def model_of(run, step):
    return AutoModelForCausalLM.from_pretrained(folder_of(run, step), dtype=torch.float32, attn_implementation="eager").double().eval()


def batch_of(run, step):
    """(inputs, targets) of a step: the stream is the bytes of each document and its end."""
    stream = [token for document in documents() for token in [*document.encode(), 256]]
    shown = json.loads(cairn("data", "show", f"{run}@{step}", "--json").stdout)
    inputs, targets = [], []
    for row in shown["sequences"]:
        first = row["window"] * CONTEXT
        assert row["ids"] == stream[first:first + CONTEXT], row
        inputs.append(row["ids"])
        targets.append(stream[first + 1:first + CONTEXT + 1])
    return torch.tensor(inputs), torch.tensor(targets)


def loss_of(model, inputs, targets):
    logits = model(input_ids=inputs, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def gradients(model, inputs, targets):
    model.zero_grad()
    loss_of(model, inputs, targets).backward()
    # transformers calls gpt_neox's head otherwise than its files do.
    return {name.replace("lm_head", "embed_out") if model.config.model_type == "gpt_neox" else name: p.grad.clone()
            for name, p in model.named_parameters()}


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors.values()])


def layers_of(model):
    return model.gpt_neox.layers if model.config.model_type == "gpt_neox" else model.model.layers


def streams(model, inputs):
    """The residual stream before the first block and after each, [B, T, C]."""
    seen, first = [], lambda value: value[0] if isinstance(value, tuple) else value
    hooks = [layers_of(model)[0].register_forward_pre_hook(lambda m, args, kwargs: seen.append(first(args) if args else kwargs["hidden_states"]),
                                                           with_kwargs=True)]
    hooks += [layer.register_forward_hook(lambda m, args, out: seen.append(first(out))) for layer in layers_of(model)]
    with torch.no_grad():
        model(input_ids=inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


def attentions(model, inputs):
    with torch.no_grad():
        return model(input_ids=inputs, use_cache=False, output_attentions=True).attentions


def near(got, expected, relative, what, absolute=0.0):
    got, expected = np.asarray(got, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert got.shape == expected.shape, (what, got.shape, expected.shape)
    error = np.abs(got - expected)
    assert (error <= relative * np.abs(expected) + absolute).all(), (what, got, expected)


# ---------------------------------------------------------------- Philox, as models/random.h has it

def philox(counter, key):
    """Philox4x32-10 on arrays: counter [4][n] and key (2 words) -> [4][n]."""
    words, key = [np.asarray(c, dtype=np.uint64) for c in counter], [np.uint64(k) for k in key]
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * words[0], np.uint64(0xCD9E8D57) * words[2]
        words = [(p1 >> np.uint64(32)) ^ words[1] ^ key[0], p1 & low, (p0 >> np.uint64(32)) ^ words[3] ^ key[1], p0 & low]
        key = [(key[0] + np.uint64(0x9E3779B9)) & low, (key[1] + np.uint64(0xBB67AE85)) & low]
    return words


def uniform(seed, name, indices):
    """Philox{seed, Purpose::probe, hash_name(name)}.uniform(index)."""
    stream = 0xCBF29CE484222325
    for byte in name.encode():
        stream = ((stream ^ byte) * 0x100000001B3) % 2**64
    key = seed ^ (6 * 0x9E3779B97F4A7C15 % 2**64)
    indices = np.asarray(indices, dtype=np.uint64)
    words = philox([indices & np.uint64(0xFFFFFFFF), indices >> np.uint64(32), np.full_like(indices, stream % 2**32), np.full_like(indices, stream >> 32)],
                   (key % 2**32, key >> 32))
    return (((words[1] << np.uint64(32)) | words[0]) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def repeated_tokens(vocabulary, period):
    rows = []
    for row in range(8):
        draws, tokens = iter((uniform(SEED, "induction", (row << 32) + np.arange(10 * period)) * vocabulary).astype(int).tolist()), []
        while len(tokens) < period:
            token = next(draws)
            if token not in tokens:
                tokens.append(token)
        rows.append(tokens * 2)
    return torch.tensor(rows)


# ---------------------------------------------------------------- the measures

def check_gradients(run, n):
    inputs, targets = batch_of(run, n)
    model = model_of(run, n - 1)
    whole = gradients(model, inputs, targets)
    norms = series(run, "grad_norm")
    for name, g in whole.items():
        near(norms[n, name], g.norm(), 1e-4, name, 1e-6)
    near(norms[n, ""], flat(whole).norm(), 1e-5, "grad_norm")
    for i in range(len(layers_of(model))):
        near(norms[n, f"layer.{i}"], flat({k: g for k, g in whole.items() if f"layers.{i}." in k}).norm(), 1e-5, f"layer.{i}")

    before = gradients(model_of(run, n - 1 - 1), *batch_of(run, n - 1))
    cosine = series(run, "grad_cosine")
    near(cosine[n, ""], torch.cosine_similarity(flat(whole), flat(before), dim=0), 0, "grad_cosine", 1e-5)

    parts = [flat(gradients(model, inputs[i:i + MICRO], targets[i:i + MICRO])) for i in range(0, BATCH, MICRO)]
    small, large = np.mean([float(p @ p) for p in parts]), float(flat(whole) @ flat(whole))
    squared, trace = (BATCH * large - MICRO * small) / (BATCH - MICRO), (small - large) / (1 / MICRO - 1 / BATCH)
    noise = series(run, "noise_scale")
    near(noise[n, "gradient_squared"], squared, 1e-4, "gradient_squared", 1e-5 * large)
    near(noise[n, "variance_trace"], trace, 1e-4, "variance_trace", 1e-5 * large)
    if squared > 0:
        near(noise[n, ""], trace / squared, 1e-3, "noise_scale")


def check_updates(run, n):
    old, new = (load_file(os.path.join(folder_of(run, step), "model.safetensors")) for step in (n - 1, n))
    ratios = series(run, "update_ratio")
    old = {name: t.double() for name, t in old.items()}
    for name, t in old.items():
        if t.norm() > 0:
            near(ratios[n, name], (new[name].double() - t).norm() / t.norm(), 1e-6, name)
        else:
            assert (n, name) not in ratios, name
    everything = torch.cat([(new[name].double() - t).flatten() for name, t in old.items()])
    near(ratios[n, ""], everything.norm() / flat(old).norm(), 1e-6, "update_ratio")


def check_activations(run, n):
    inputs, _ = batch_of(run, n)
    model = model_of(run, n - 1)
    rms, kurtosis = series(run, "activation_rms"), series(run, "activation_kurtosis")
    for i, x in enumerate(streams(model, inputs)):
        name = "embed" if i == 0 else f"layer.{i - 1}"
        squares = x.flatten(0, 1).square().mean(0).numpy()
        near(rms[n, name], np.sqrt(squares.mean()), 1e-5, name)
        near(kurtosis[n, name], (squares**2).mean() / squares.mean() ** 2, 1e-5, name)
    entropy = series(run, "attention_entropy")
    for i, p in enumerate(attentions(model, inputs)):
        expected = -(p * torch.where(p > 0, p, 1.0).log()).sum(-1).mean(dim=(0, 2))  # [H]
        near(entropy[n, f"layer.{i}"], expected, 1e-4, f"entropy {i}")


def check_induction(run, n):
    model, period = model_of(run, n), CONTEXT // 2
    scores = series(run, "induction")
    for i, p in enumerate(attentions(model, repeated_tokens(257, period))):
        t = torch.arange(period, 2 * period)
        near(scores[n, f"layer.{i}"], p[:, :, t, t - period + 1].mean(dim=(0, 2)), 1e-3, f"induction {i}", 1e-6)


def check_token_loss(run, n):
    found = series(run, "token_loss")
    name = next(name for step, name in found if not name.endswith(".ids"))
    ids = [*FIXED.encode()]
    assert found[min(step for step, _ in found), name + ".ids"].astype(int).tolist() == ids
    model, losses = model_of(run, n), []
    for begin in range(0, len(ids) - 1, CONTEXT):
        window = torch.tensor(ids[begin:begin + CONTEXT + 1])
        with torch.no_grad():
            logp = model(input_ids=window[None, :-1], use_cache=False).logits[0].log_softmax(-1)
        losses += (-logp[torch.arange(len(window) - 1), window[1:]]).tolist()
    near(found[n, name], losses, 1e-5, "token_loss", 1e-5)


def flat_order(model):
    """The weights of a llama as they lie in Cairn's flat buffer: matrices by block, embedding, norms by block."""
    names = [name for name, _ in model.named_parameters()]
    matrices = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    norms = ["input_layernorm", "post_attention_layernorm"]
    ordered = [next(n for n in names if f"layers.{i}." in n and m in n) for i in range(len(layers_of(model))) for m in matrices]
    ordered += ["model.embed_tokens.weight"]
    ordered += [f"model.layers.{i}.{m}.weight" for i in range(len(layers_of(model))) for m in norms] + ["model.norm.weight"]
    assert sorted(ordered) == sorted(names)
    return [dict(model.named_parameters())[name] for name in ordered]


def check_hessian(run, n):
    """torch's exact products in float64: the largest eigenvalue by Lanczos, fully orthogonalised, which a Rayleigh quotient cannot
    exceed; for the llama also the same power iteration from the same start."""
    model = model_of(run, n - 1)
    inputs, targets = batch_of(run, n)
    llama = model.config.model_type == "llama"
    weights = flat_order(model) if llama else list(model.parameters())
    first = torch.autograd.grad(loss_of(model, inputs, targets), weights, create_graph=True)
    gradient = torch.cat([g.flatten() for g in first])

    def times(v):
        return torch.cat([h.flatten() for h in torch.autograd.grad(gradient @ v, weights, retain_graph=True)])

    generator = torch.Generator().manual_seed(0)
    basis, diagonal, beside = [], [], []
    v = torch.randn(gradient.numel(), generator=generator, dtype=torch.float64)
    for _ in range(60):
        v = v / v.norm()
        basis.append(v)
        w = times(v)
        diagonal.append(float(w @ v))
        for _ in range(2):
            for b in basis:
                w = w - (w @ b) * b
        beside.append(float(w.norm()))
        v = w
    ends = np.linalg.eigvalsh(np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1))
    largest = ends[0] if abs(ends[0]) > ends[-1] else ends[-1]
    found = series(run, "hessian")
    assert found[n, "converged"] == 1 and found[n, "iterations"] <= 100, found
    assert 0.9 <= found[n, ""] / largest <= 1.001, (found[n, ""], largest)  # where it stops is what the definition says
    if not llama:
        return

    i = np.arange(gradient.numel())
    radius, angle = np.sqrt(-2 * np.log(1 - uniform(SEED, "hessian", 2 * i))), 2 * np.pi * uniform(SEED, "hessian", 2 * i + 1)
    v = torch.tensor(radius * np.cos(angle))
    v, value, iterations = v / v.norm(), 0.0, 0
    while True:
        product = times(v)
        last, value, iterations = value, float(v @ product), iterations + 1
        if iterations > 1 and abs(value - last) < 1e-3 * abs(value):
            break
        v = product / product.norm()
    near(found[n, ""], value, 1e-3, "hessian by the same iteration")
    assert abs(found[n, "iterations"] - iterations) <= 1, (found[n, "iterations"], iterations)


def check_family(family):
    with workspace() as folder:
        run = train(folder, family)
        report = replay(run, folder, "--from", 0, "--to", STEPS)
        assert report["replayed"] == STEPS, report
        for metric in PROBES:
            assert series(run, metric), metric
        n = STEPS - 1
        check_gradients(run, n)
        check_updates(run, n)
        check_activations(run, n)
        check_induction(run, n)
        check_token_loss(run, n)
        check_hessian(run, n)


def test_llama():
    check_family("llama")


def test_gpt_neox():
    check_family("gpt_neox")


def test_gemma3():
    check_family("gemma3_text")


def test_olmo2():
    check_family("olmo2")


def test_replay_with_every_probe_verifies_every_step():
    """Dropout, Muon, EMA, documents kept apart; in two stretches, every second step; and in two processes at a time, which share
    the folder."""
    with workspace() as folder:
        changes = {"model.dropout": 0.1, "optim.name": "muon", "optim.ema": 0.9, "data.mask_documents": True, "checkpoints.every": 4, "checkpoints.log_spaced": False,
                   "train.steps": 12}
        run = train(folder, "llama", **changes)
        for first, last in ((0, 5), (5, 12)):
            report = replay(run, folder, "--from", first, "--to", last, "--every", 2)
            assert report["replayed"] == last - first, report
        for metric in PROBES:
            steps = sorted({step for step, _ in series(run, metric)})
            # Step 6 begins the second stretch: nobody saw the gradient of step 5 there.
            assert steps == [step for step in (2, 4, 6, 8, 10, 12) if metric != "grad_cosine" or step != 6], (metric, steps)
        alone = {metric: series(run, metric) for metric in PROBES}
        shutil.rmtree(os.path.join(run, "probes"))
        report = replay(run, folder, "--every", 2, "--jobs", 2)
        assert report["replayed"] == 12, report
        for metric in PROBES:
            together = series(run, metric)
            assert {step for step, _ in together} == {2, 4, 6, 8, 10, 12}, metric  # the cut is at a checkpoint
            for (step, name), value in together.items():
                if (step, name) in alone[metric]:
                    assert np.allclose(value, alone[metric][step, name], rtol=1e-6, atol=1e-12, equal_nan=True), (metric, step, name)


def test_mistakes():
    with workspace() as folder:
        run = train(folder, "llama")
        for arguments, words in [(("--probe", "grad_nrom"), ["grad_nrom", "grad_norm"]), (("--probe", "token_loss"), ["token_loss", "--text"])]:
            done = cairn("replay", run, *arguments, check=False)
            assert done.returncode == 2 and all(word in done.stderr for word in words), (done.returncode, done.stderr)


def test_all_without_a_text():
    """`all` is what can be measured: token_loss wants a text, and that it is left out is said."""
    with workspace() as folder:
        run = train(folder, "llama")
        for jobs in (1, 2):
            done = cairn("replay", run, "--probe", "all", "--every", 3, "--jobs", jobs)
            assert done.stdout.count("token_loss") == 1 and "--text" in done.stdout, done.stdout
            measured = {name[:-6] for name in os.listdir(os.path.join(run, "probes")) if name.endswith(".jsonl")}
            assert measured == set(PROBES) - {"token_loss"} - ({"grad_cosine"} - measured), measured
            shutil.rmtree(os.path.join(run, "probes"))


# ---------------------------------------------------------------- CKA

def hsic(x, y):
    """Song et al. 2012, equation 5."""
    n = len(x)
    k, l = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    return ((k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * k.sum(0) @ l.sum(0)) / (n * (n - 3))


def cka(x, y):
    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


def test_cka():
    with workspace() as folder:
        for family in ("llama", "gpt_neox"):
            run = train(folder, family)
            out = os.path.join(folder, family + "-analysis")
            cairn("analyze", f"{run}@stored", "cka", "--text", fixed_text(folder), "--context", CONTEXT, "--out", out, "--json")
            found = {}
            for metric in ("cka_layers", "cka_first", "cka_previous"):
                with open(os.path.join(out, metric + ".jsonl")) as file:
                    for line in file:
                        entry = json.loads(line)
                        found[metric, entry["step"]] = np.array(entry["value"])
            ids = list(FIXED.encode())
            activations = {}
            for step in (0, STEPS - 1, STEPS):
                model, parts = model_of(run, step), []
                for begin in range(0, len(ids) - 1, CONTEXT):  # the last token has no successor
                    window = torch.tensor([ids[begin:min(begin + CONTEXT, len(ids) - 1)]])
                    parts.append([x[0].numpy() for x in streams(model, window)])
                activations[step] = [np.concatenate(layer) for layer in zip(*parts)]
            last = activations[STEPS]
            near(found["cka_layers", STEPS], [[cka(x, y) for y in last] for x in last], 1e-4, "cka_layers", 1e-5)
            near(found["cka_first", STEPS], [cka(x, y) for x, y in zip(activations[0], last)], 1e-4, "cka_first", 1e-5)
            near(found["cka_previous", STEPS], [cka(x, y) for x, y in zip(activations[STEPS - 1], last)], 1e-4, "cka_previous", 1e-5)
            assert ("cka_first", 0) not in found and found["cka_first", 1].shape == (3,)


if __name__ == "__main__":
    main([test_llama, test_gpt_neox, test_gemma3, test_olmo2, test_replay_with_every_probe_verifies_every_step, test_mistakes, test_all_without_a_text, test_cka])
