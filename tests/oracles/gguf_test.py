"""GGUF files that the official `gguf` package writes, read by Cairn, against transformers on the same numbers: every architecture of
the table, every element type, every scaling of RoPE; where transformers reads the file itself, against that too. What Cairn exports of
them loads in transformers with equal bits. Files that cannot be followed are refused by name.

Names of tensors are those of the package's own table; how llama.cpp's conversion lays tensors out stands here a second time.

usage: gguf_test.py CAIRN_PROGRAM
"""
import json
import os
import warnings
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
warnings.filterwarnings("ignore")

import gguf  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from gguf import GGMLQuantizationType as Q  # noqa: E402
from harness import cairn, main, text, workspace  # noqa: E402

TOLERANCE = 2e-5  # of log-probabilities, times the largest of them
TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "mixed"]
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
# Another ratio of the two factors than the published models have.
LLAMA3_ODD = {**LLAMA3, "factor": 8.0, "high_freq_factor": 12.0, "original_max_position_embeddings": 96}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}

COMMON = dict(vocab_size=67, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=64, bos_token_id=None, eos_token_id=None, pad_token_id=None)


def gated(**changes):
    return {**COMMON, "rms_norm_eps": 1e-3, "tie_word_embeddings": False, **changes}


def rope(theta, **scaling):
    return {"rope_theta": theta, **({"rope_type": "default"} if not scaling else scaling)}


CASES = {
    "llama": ("llama", gated(rope_parameters=rope(5e4))),
    "llama, tied, biases, wide heads": ("llama", gated(rope_parameters=rope(1e4), tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
                                                       head_dim=32)),
    "llama 3.1": ("llama", gated(rope_parameters=rope(1e3, **LLAMA3), head_dim=32)),
    "llama, odd scaling": ("llama", gated(rope_parameters=rope(1e2, **LLAMA3_ODD), head_dim=64)),
    "llama, linear": ("llama", gated(rope_parameters=rope(1e4, rope_type="linear", factor=4.0))),
    "mistral": ("llama", gated(model_type="mistral", rope_parameters=rope(1e4), sliding_window=None)),
    "qwen2": ("qwen2", gated(rope_parameters=rope(1e6))),
    "qwen2, yarn": ("qwen2", gated(rope_parameters=rope(1e4, **YARN), tie_word_embeddings=True)),
    "qwen3": ("qwen3", gated(rope_parameters=rope(1e6), head_dim=32)),
    "smollm3": ("smollm3", gated(rope_parameters=rope(5e5), num_hidden_layers=5, tie_word_embeddings=True)),
    "olmo2": ("olmo2", gated(rope_parameters=rope(5e5))),
    "gemma3": ("gemma3", gated(model_type="gemma3_text", head_dim=32, num_hidden_layers=7, sliding_window=6, query_pre_attn_scalar=32,
                               tie_word_embeddings=True, rope_parameters={
                                   "full_attention": rope(1e6, rope_type="linear", factor=2.0),
                                   "sliding_attention": rope(1e4)})),
    # What transformers' reader of GGUF takes as given.
    "gemma3 of the published sizes": ("gemma3", gated(model_type="gemma3_text", head_dim=256, num_attention_heads=2, num_key_value_heads=1,
                                                      num_hidden_layers=7, sliding_window=6, query_pre_attn_scalar=256, tie_word_embeddings=True,
                                                      rope_parameters={"full_attention": rope(1e6), "sliding_attention": rope(1e4)})),
    "gpt2": ("gpt2", dict(vocab_size=67, n_embd=64, n_inner=96, n_layer=3, n_head=4, n_positions=64, layer_norm_epsilon=1e-4,
                          bos_token_id=None, eos_token_id=None)),
    "gpt2, a head of its own": ("gpt2", dict(vocab_size=67, n_embd=64, n_inner=96, n_layer=2, n_head=2, n_positions=64,
                                             layer_norm_epsilon=1e-4, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None)),
    "gpt2 of the published sizes": ("gpt2", dict(vocab_size=50257, n_embd=64, n_inner=256, n_layer=2, n_head=4, n_positions=1024,
                                                 bos_token_id=None, eos_token_id=None)),
    "gptneox": ("gptneox", dict(model_type="gpt_neox", **{k: v for k, v in COMMON.items() if k != "num_key_value_heads"}, layer_norm_eps=1e-3,
                                rope_parameters={**rope(3e4), "partial_rotary_factor": 0.375})),
    "gptneox, one after the other": ("gptneox", dict(model_type="gpt_neox", use_parallel_residual=False, attention_bias=True,
                                                     **{k: v for k, v in COMMON.items() if k != "num_key_value_heads"}, layer_norm_eps=1e-3,
                                                     rope_parameters={**rope(1e4), "partial_rotary_factor": 0.25})),
}
# Those that transformers' own reader gets right: it leaves head_dim of qwen3 and every scaling aside.
BY_TRANSFORMERS = ["llama", "qwen2", "gpt2 of the published sizes", "gemma3 of the published sizes"]


def model_of(architecture, settings, seed=0):
    settings = dict(settings)
    model_type = settings.pop("model_type", architecture)
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(model_type, **settings)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():  # norms and biases away from one and zero
            p.add_(torch.randn_like(p) * (0.2 if p.dim() == 1 else 0.05))
    return model


# ---- how llama.cpp's conversion lays tensors out: (to the file, back) ----
def interleave(heads):
    def there(w):
        return w.reshape(heads, 2, w.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(w.shape)

    def back(w):
        return w.reshape(heads, w.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)

    return there, back


def stack_qkv(heads):
    def there(w):
        return w.reshape(heads, 3, w.shape[0] // heads // 3, -1).swapaxes(0, 1).reshape(w.shape)

    def back(w):
        return w.reshape(3, heads, w.shape[0] // heads // 3, -1).swapaxes(0, 1).reshape(w.shape)

    return there, back


def layout(architecture, name, config):
    if architecture in ("llama", "smollm3") and ("q_proj" in name or "k_proj" in name):
        return interleave(config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
    if architecture == "gemma3" and name.endswith("norm.weight"):
        return lambda w: w + 1, lambda w: w - 1
    if architecture == "gpt2" and ".c_" in name and name.endswith("weight"):
        return lambda w: w.T, lambda w: w.T
    if architecture == "gptneox" and "query_key_value" in name:
        return stack_qkv(config.num_attention_heads)
    return lambda w: w, lambda w: w


# ---- metadata ----
def llama3_divisors(config, head_dim):
    """As the conversion computes them."""
    scaling = config.rope_parameters
    waves = 2 * np.pi * scaling["rope_theta"]**(np.arange(0, head_dim, 2) / head_dim)
    old, low, high = (scaling[k] for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
    smooth = (old / waves - low) / (high - low)
    blended = 1 / ((1 - smooth) / scaling["factor"] + smooth)
    return np.where(waves < old / high, 1.0, np.where(waves > old / low, scaling["factor"], blended)).astype(np.float32)


def describe(writer, architecture, config):
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.n_inner if architecture == "gpt2" else config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_quantization_version(2)
    if architecture == "gpt2":
        return writer.add_layer_norm_eps(config.layer_norm_epsilon)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    parameters = config.rope_parameters
    if architecture == "gptneox":
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_parallel_residual(config.use_parallel_residual)
        writer.add_rope_dimension_count(int(head_dim * parameters["partial_rotary_factor"]))
        writer.add_rope_freq_base(parameters["rope_theta"])
        return None
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if architecture == "gemma3":
        writer.add_sliding_window(config.sliding_window)
        parameters = parameters["full_attention"]
    else:
        writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(parameters["rope_theta"])
    kind = parameters["rope_type"]
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(parameters["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(parameters["factor"])
        writer.add_rope_scaling_orig_ctx_len(parameters["original_max_position_embeddings"])
    elif kind == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(config, head_dim))
    return None


def type_of(wanted, name, array, count):
    """What a quantised file holds a tensor as: vectors stay as they are."""
    if array.ndim == 1 or wanted == "F32":
        return Q.F32
    if wanted == "mixed":
        wanted = ["Q8_0", "Q4_1", "F16", "Q4_0", "BF16", "F32"][count % 6]
    return Q[wanted]


def write(path, architecture, model, wanted, more=lambda writer: None, alignment=None):
    """The model as a GGUF file; its parameters become what the file holds of them."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("model")
    if alignment:
        writer.add_custom_alignment(alignment)
    describe(writer, architecture, config)
    more(writer)
    arch = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    state = dict(model.named_parameters())  # a tied head once
    for count, (name, p) in enumerate(state.items()):
        there, back = layout(architecture, name, config)
        array = np.ascontiguousarray(there(p.detach().numpy()))
        kind = type_of(wanted, name, array, count)
        data = gguf.quants.quantize(array, kind)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), data, raw_dtype=kind)
        with torch.no_grad():
            p.copy_(torch.from_numpy(np.ascontiguousarray(back(gguf.quants.dequantize(data, kind).reshape(array.shape)))))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def ids_of(config, count=3, length=40):
    draw = np.random.default_rng(0)
    return [draw.integers(0, config.vocab_size, length).tolist() for _ in range(count)]


def logprobs_of(model, rows):
    out = []
    with torch.no_grad():
        for row in rows:
            logits = model(torch.tensor([row])).logits[0].float().log_softmax(-1)
            out.append(logits[:-1].gather(1, torch.tensor(row[1:])[:, None])[:, 0].numpy())
    return out


def cairn_logprobs(folder, path, rows):
    ids, out = Path(folder) / "ids.jsonl", Path(folder) / "logprobs.jsonl"
    ids.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cairn("eval", path, "--ids", ids, "--logprobs", out, "--threads", 1)
    return [np.array(json.loads(line), np.float32) for line in out.read_text().splitlines()]


def compare(what, ours, theirs):
    worst = max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)) / max(np.abs(b).max() for b in theirs)
    assert worst <= TOLERANCE, f"{what}: log-probabilities differ by {worst:.2e} of the largest"
    return worst


def architectures():
    with workspace() as folder:
        worst = {}
        for name, (architecture, settings) in CASES.items():
            model = model_of(architecture, settings)
            path = write(os.path.join(folder, "model.gguf"), architecture, model, "F32")
            rows = ids_of(model.config)
            worst[name] = compare(name, cairn_logprobs(folder, path, rows), logprobs_of(model, rows))
            if name in BY_TRANSFORMERS:
                other = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32).eval()
                compare(f"{name}, as transformers reads it", cairn_logprobs(folder, path, rows), logprobs_of(other, rows))
        print("   " + ", ".join(f"{name} {value:.1e}" for name, value in worst.items()))


def element_types():
    with workspace() as folder:
        for architecture in ("llama", "gpt2", "gptneox", "gemma3"):
            for wanted in TYPES:
                model = model_of(*CASES[architecture], seed=1)
                path = write(os.path.join(folder, "model.gguf"), architecture, model, wanted, alignment=64 if wanted == "mixed" else None)
                rows = ids_of(model.config)
                compare(f"{architecture} in {wanted}", cairn_logprobs(folder, path, rows), logprobs_of(model, rows))


def dequantised_bits():
    """Exported weights have the very bits of the package's dequantize."""
    with workspace() as folder:
        for number, wanted in enumerate(TYPES):
            model = model_of(*CASES["llama"], seed=2)
            path = write(os.path.join(folder, "model.gguf"), "llama", model, wanted)
            out = os.path.join(folder, f"hf-{number}")
            cairn("export", path, "--format", "hf", "--out", out)
            loaded = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
            for (name, a), b in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
                assert torch.equal(a.view(torch.int32), b.view(torch.int32)), f"{wanted}: {name} has other bits"
            assert json.loads(cairn("diff", path, out, "--json").stdout)["identical"]


def exports():
    with workspace() as folder:
        for number, (name, (architecture, settings)) in enumerate(CASES.items()):
            model = model_of(architecture, settings, seed=3)
            path = write(os.path.join(folder, "model.gguf"), architecture, model, "Q8_0")
            out = os.path.join(folder, f"hf-{number}")
            cairn("export", path, "--out", out)
            cairn("verify", path)
            cairn("verify", out)
            loaded = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager").eval()
            rows = ids_of(model.config)
            compare(f"{name}, exported", logprobs_of(loaded, rows), logprobs_of(model, rows))


# ---- a tokenizer, and the verbs ----
def bytes_vocabulary(writer):
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {b: chr(b) for b in visible}
    letters.update({b: chr(256 + k) for k, b in enumerate(b for b in range(256) if b not in letters)})
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*(letters[b] for b in range(256)), "<|endoftext|>", "Ġt", "Ġth"])
    writer.add_token_types([1] * 256 + [3, 1, 1])
    writer.add_token_merges(["Ġ t", "Ġt h"])
    writer.add_eos_token_id(256)
    writer.add_bos_token_id(256)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")


def verbs():
    """Every verb that takes a model takes the file."""
    with workspace() as folder:
        model = model_of("llama", {**CASES["llama"][1], "vocab_size": 259})
        path = write(os.path.join(folder, "model.gguf"), "llama", model, "Q8_0", bytes_vocabulary)
        out = os.path.join(folder, "hf")
        cairn("export", path, "--out", out)
        tokenizer = transformers.AutoTokenizer.from_pretrained(out)
        prompt = "over the hills"
        ids = tokenizer(prompt)["input_ids"]
        assert ids == [*b"over", 258, *b"e hills"], ids
        assert tokenizer.chat_template.startswith("{% for m in messages %}") and tokenizer.eos_token == "<|endoftext|>"
        lines = "".join(json.dumps(line) + "\n" for line in [prompt, "the then"])
        assert cairn("tokenizer", "encode", "--tokenizer", path, "--json", input=lines).stdout == cairn(
            "tokenizer", "encode", "--tokenizer", out, "--json", input=lines).stdout
        answers = [json.loads(cairn("generate", m, "--prompt", prompt, "--max-tokens", 12, "--temperature", 0, "--json").stdout) for m in (path, out)]
        assert answers[0] == answers[1]
        greedy = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=256, pad_token_id=0)[0, len(ids):].tolist()
        assert answers[0]["ids"] == [i for i in greedy if i != 256], (answers[0]["ids"], greedy)
        corpus = os.path.join(folder, "text.txt")
        Path(corpus).write_text(text(30))
        evals = [cairn("eval", m, "--text", corpus, "--context", 32, "--json").stdout for m in (path, out)]
        assert evals[0] == evals[1]
        assert cairn("diff", path, out, "--config", "--json").returncode == 0
        cairn("merge", path, out, "--out", os.path.join(folder, "merged"))
        assert json.loads(cairn("diff", os.path.join(folder, "merged"), out, "--json").stdout)["identical"]
        cairn("analyze", path, "norm")
        run = {"objective": "pretrain", "seed": 1, "model": {"from": path},
               "data": {"train": [{"text": corpus}], "context": 32, "cache": os.path.join(folder, "cache")},
               "optim": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "constant"}}, "train": {"steps": 2, "batch": 4, "threads": 1}}
        run_file = os.path.join(folder, "run.yaml")
        losses = []
        for number, start in enumerate((path, out)):
            run["model"]["from"] = start
            Path(run_file).write_text(json.dumps(run))
            cairn("train", run_file, "--run", os.path.join(folder, f"run-{number}"))
            journal = Path(folder, f"run-{number}", "journal.jsonl").read_text().splitlines()
            losses.append([json.loads(line)["loss"] for line in journal])
        assert losses[0] == losses[1] and len(losses[0]) == 2, losses


# ---- what is refused ----
def refused(path, *words):
    done = cairn("eval", path, "--ids", "/dev/null", "--logprobs", path + ".out", check=False)
    assert done.returncode == 1, f"{path}: exit {done.returncode}"
    for word in (path, *words):
        assert word in done.stderr, f"'{word}' is not in: {done.stderr}"


def refusals():
    with workspace() as folder:
        path = os.path.join(folder, "model.gguf")

        def with_metadata(*words, architecture="llama", more=lambda writer: None, **options):
            write(path, architecture, model_of("llama", {**CASES["llama"][1], **options}), "F32", more)
            refused(path, *words)

        def key(name, value):
            return lambda writer: writer.add_uint32(name, value) if isinstance(value, int) else writer.add_string(name, value)

        with_metadata("llama.expert_count", "mixtures of experts", more=key("llama.expert_count", 4))
        with_metadata("llama.attention.sliding_window", "not known here", more=key("llama.attention.sliding_window", 8))
        with_metadata("llama.rope.scaling.type", "'longrope'", more=lambda w: (w.add_string("llama.rope.scaling.type", "longrope"),
                                                                               w.add_float32("llama.rope.scaling.factor", 2.0)))
        with_metadata("split.count", "parts", more=lambda w: w.add_uint16("split.count", 3))
        with_metadata("tensor 'blk.0.attn_sinks.weight'", "none of architecture llama's",
                      more=lambda w: w.add_tensor("blk.0.attn_sinks.weight", np.ones(4, np.float32)))
        with_metadata("rope_freqs.weight", "llama3", more=lambda w: w.add_tensor("rope_freqs.weight", np.linspace(1, 3, 8, dtype=np.float32)))
        with_metadata("rope_freqs.weight", "has 5 elements", more=lambda w: w.add_tensor("rope_freqs.weight", np.ones(5, np.float32)))
        with_metadata("rope_freqs.weight", "llama3", more=lambda w: w.add_tensor("rope_freqs.weight", np.full(8, np.nan, np.float32)))
        for name, wrong in (("attention.head_count", 0), ("attention.head_count", 1 << 31), ("attention.head_count", 7), ("block_count", 4),
                            ("embedding_length", 32), ("attention.layer_norm_rms_epsilon", "small")):
            def spoil(writer):
                writer.kv_data[0].pop(f"llama.{name}")
                key(f"llama.{name}", wrong)(writer)

            with_metadata(*(["embed_tokens"] if name == "embedding_length" else ["model.layers.3"] if name == "block_count" else [name]
                            if wrong != 7 else ["heads"]), more=spoil)
        # A tensor of a type that is known by name alone.
        with_metadata("tensor 'blk.9.ffn_up.weight'", "Q4_K", "Q8_0",
                      more=lambda w: w.add_tensor("blk.9.ffn_up.weight", np.zeros((2, 144), np.uint8), raw_dtype=Q.Q4_K))

        def bare(architecture, more=lambda writer: None, endian=gguf.GGUFEndian.LITTLE):
            writer = gguf.GGUFWriter(path, architecture, endianess=endian)
            more(writer)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()

        for architecture in ("mamba", "qwen3moe", "gpt-oss", "falcon", "bert"):
            bare(architecture)
            refused(path, "general.architecture", f"'{architecture}'", "gemma3, gpt2, gptneox, llama, olmo2, qwen2, qwen3, smollm3")
        bare("llama", lambda w: w.add_type("adapter"))
        refused(path, "adapter")
        bare("llama")
        refused(path, "no tensors")
        bare("llama", endian=gguf.GGUFEndian.BIG)
        refused(path, "big-endian")
        # Missing settings, and tensors that do not belong to them.
        model = model_of(*CASES["llama"])
        write(path, "llama", model, "F32")
        whole = Path(path).read_bytes()
        for name in (b"llama.block_count", b"llama.embedding_length", b"llama.attention.head_count", b"llama.attention.layer_norm_rms_epsilon"):
            Path(path).write_bytes(whole.replace(name, name[:-1] + b"X", 1))
            refused(path, name.decode())
        for cut in (3, 20, 200, len(whole) // 2, len(whole) - 1):
            Path(path).write_bytes(whole[:cut])
            refused(path)
        Path(path).write_bytes(b"PK\3\4" + whole[4:])
        refused(path, "no GGUF file")
        refused(os.path.join(folder, "missing.gguf"))
        assert cairn("verify", path, check=False).returncode == 1


if __name__ == "__main__":
    main([architectures, element_types, dequantised_bits, exports, verbs, refusals])
