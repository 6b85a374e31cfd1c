"""Every family against transformers: small random models whose shapes differ everywhere.

Compared in float32, for the vectorised kernels and for their plain twins:
  logits       max |difference| <= 2e-5 * max |logit|   (piece by piece through the KV cache too)
  gradients    norm of the difference <= 2e-5 * norm of the tensor's gradient + 1e-7 * norm of all gradients
               (the second term: a key's bias has a gradient of zero but for rounding)
  ten losses   |difference| <= 2e-5, AdamW with torch's defaults, lr 1e-3
and in bf16-mixed and bf16, loosely: what rounds where is not the same. Activation checkpointing has to change no bit. Models that
C++ writes have to load in transformers with the same bits.

usage: parity_test.py CAIRN_PROGRAM   (parity_driver lies beside it)
"""
import copy
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

BATCH, LENGTH, STEPS = 3, 26, 10
LOGITS, GRADIENTS, LOSSES = 2e-5, 2e-5, 2e-5
LOOSE = 0.1  # of the same measures, in bfloat16

LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0, "original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def old_rope(config):
    """The keys that files before transformers 5 have."""
    rope = config.pop("rope_parameters")
    if config["model_type"] == "gpt_neox":
        config["rotary_emb_base"], config["rotary_pct"] = rope.pop("rope_theta"), rope.pop("partial_rotary_factor")
    elif "full_attention" in rope:
        config["rope_theta"] = rope["full_attention"].pop("rope_theta")
        if config["model_type"] == "gemma3_text":
            config["rope_local_base_freq"] = rope["sliding_attention"].pop("rope_theta")
        rope = rope["full_attention"]
    else:
        config["rope_theta"] = rope.pop("rope_theta")
        if "partial_rotary_factor" in rope:
            config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None


def sliding_pattern_only(config):
    config.pop("layer_types")
    config["sliding_window_pattern"] = config.pop("_sliding_window_pattern")


def gpt2_of_2019(tensors):
    """The published files: no prefix, and the causal masks beside the weights."""
    out = {name.removeprefix("transformer."): t for name, t in tensors.items()}
    out["h.0.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
    out["h.1.attn.masked_bias"] = torch.tensor(-1e4)
    return out


def neox_buffers(tensors):
    out = {name.replace("embed_out", "lm_head"): t for name, t in tensors.items()}
    out["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(3)
    out["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    out["gpt_neox.layers.1.attention.masked_bias"] = torch.tensor(-1e9)
    return out


def interval_beside(config):
    """Published files have the interval too, which says nothing where there are layer_types."""
    config["full_attention_interval"] = 3


def mtp_beside(tensors):
    """The heads of multi-token prediction, which published files hold and transformers passes over."""
    return {**tensors, "mtp.fc.weight": torch.ones(36, 72), "mtp.layers.0.mlp.gate_proj.weight": torch.ones(44, 36)}


def tied_head_written(tensors):
    return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


COMMON = dict(vocab_size=61, hidden_size=36, intermediate_size=44, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
              max_position_embeddings=64, rms_norm_eps=1e-3, bos_token_id=None, eos_token_id=None, pad_token_id=None)


def gated(**changes):
    return {**COMMON, **changes}


def layered(full, sliding):
    return {"full_attention": {"rope_type": "default", **full}, "sliding_attention": {"rope_type": "default", **sliding}}


# Latent attention; experts in several groups, shared ones beside them; an indexer of many heads, so that no score ties with another,
# which chooses fewer keys than the context has.
LATENT = dict(vocab_size=61, hidden_size=36, intermediate_size=44, num_hidden_layers=3, num_attention_heads=5, num_key_value_heads=5, q_lora_rank=20,
              kv_lora_rank=12, qk_nope_head_dim=10, qk_rope_head_dim=6, v_head_dim=14, first_k_dense_replace=3, moe_intermediate_size=24, n_routed_experts=8,
              num_experts_per_tok=3, n_group=4, topk_group=2, n_shared_experts=2, max_position_embeddings=64, rms_norm_eps=1e-3, bos_token_id=None,
              eos_token_id=None, pad_token_id=None)
INDEX = dict(index_topk=7, index_n_heads=16, index_head_dim=12)
DEEPSEEK_YARN = {**YARN, "rope_theta": 1e4, "beta_fast": 8.0, "beta_slow": 0.5, "mscale": 1.0, "mscale_all_dim": 0.7}


def latent(**changes):
    return {**LATENT, **changes}


def indexed(**changes):
    return {**LATENT, **INDEX, **changes}


NEOX = dict(vocab_size=61, hidden_size=40, intermediate_size=52, num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=64, layer_norm_eps=1e-3,
            bos_token_id=None, eos_token_id=None, pad_token_id=None)
GPT2 = dict(vocab_size=61, n_embd=36, n_layer=3, n_head=3, n_positions=40, layer_norm_epsilon=1e-3, bos_token_id=None, eos_token_id=None,
            attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)

# The bounds in bfloat16 ask for weights that no token is ill-conditioned with: with others a logit moves by 0.2 in transformers'
# own autocast too. Dense feed-forwards, since what is looked at is the linear layer and the gate; experts have cases of their own.
NEXT = dict(COMMON, num_hidden_layers=4, head_dim=16, num_experts=0, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=12,
            linear_value_head_dim=10)

# name, model_type, keys, and what is special: `config`, `tensors`: what is done to the files before anyone reads them; `shards`: their
# size; `length`: tokens in a row (beyond the kernels' tiles); `steps`: of training (the more rows choose, the closer the closest choice);
# `loose`: False: not in bfloat16
CASES = [
    ("gpt2", "gpt2", GPT2, {}),
    ("gpt2 untied", "gpt2", {**GPT2, "tie_word_embeddings": False, "n_inner": 50, "activation_function": "relu",
                             "scale_attn_by_inverse_layer_idx": True}, {}),
    ("gpt2 old names", "gpt2", {**GPT2, "scale_attn_weights": False}, {"tensors": gpt2_of_2019}),
    ("pythia", "gpt_neox", NEOX, {"config": old_rope, "tensors": neox_buffers}),
    ("neox sequential", "gpt_neox", {**NEOX, "use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True,
                                     "rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 500.0, "partial_rotary_factor": 0.5}}, {}),
    ("llama", "llama", gated(head_dim=10, attention_bias=True, mlp_bias=True), {}),
    ("llama tied, llama3 rope", "llama", gated(tie_word_embeddings=True, rope_parameters={**LLAMA3, "rope_theta": 300.0}),
     {"tensors": tied_head_written}),
    ("llama linear rope, old keys", "llama", gated(rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 777.0}), {"config": old_rope}),
    ("llama dynamic rope", "llama", gated(num_key_value_heads=6, hidden_act="gelu", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}), {}),
    ("llama yarn", "llama", gated(head_dim=16, num_key_value_heads=1, rope_parameters={**YARN, "rope_theta": 200.0, "beta_fast": 8.0, "beta_slow": 0.5, "mscale": 0.9,
                                                                     "mscale_all_dim": 0.4, "truncate": False}), {"config": old_rope}),
    ("mistral", "mistral", gated(head_dim=14, sliding_window=7), {}),
    ("mistral long", "mistral", gated(head_dim=14, sliding_window=70, max_position_embeddings=256), {"length": 203}),
    ("mistral no window", "mistral", gated(sliding_window=None, tie_word_embeddings=True, rope_parameters={**YARN, "rope_theta": 1e3}), {}),
    ("qwen2", "qwen2", gated(tie_word_embeddings=True), {"config": old_rope}),
    ("qwen2 windows", "qwen2", gated(use_sliding_window=True, sliding_window=5, max_window_layers=1), {"shards": "20KB"}),
    ("qwen2 layer types", "qwen2", gated(use_sliding_window=True, sliding_window=9, layer_types=["sliding_attention", "full_attention", "sliding_attention"]), {}),
    ("qwen3", "qwen3", gated(head_dim=12, rope_parameters={**YARN, "rope_theta": 1e4}), {}),
    ("qwen3 biases, windows", "qwen3", gated(head_dim=16, attention_bias=True, tie_word_embeddings=True, use_sliding_window=True, sliding_window=6,
                                             max_window_layers=2), {"config": old_rope}),
    ("gemma3", "gemma3_text", gated(head_dim=10, num_hidden_layers=4, sliding_window=6, query_pre_attn_scalar=17, final_logit_softcapping=3.0,
                                    layer_types=["sliding_attention", "full_attention"] * 2,
                                    rope_parameters=layered({"rope_type": "linear", "factor": 8.0, "rope_theta": 5e3}, {"rope_theta": 100.0})), {}),
    ("gemma3 long", "gemma3_text", gated(head_dim=10, sliding_window=65, max_position_embeddings=256, tie_word_embeddings=True), {"length": 150}),
    ("gemma3 pattern, old keys", "gemma3_text", gated(head_dim=14, num_hidden_layers=4, sliding_window=4, sliding_window_pattern=3, attention_bias=True,
                                                      tie_word_embeddings=False), {"config": [old_rope, sliding_pattern_only]}),
    ("olmo2", "olmo2", gated(attention_bias=True), {}),
    ("olmo2 tied", "olmo2", gated(tie_word_embeddings=True, num_key_value_heads=6), {"config": old_rope}),
    ("olmo3", "olmo3", gated(num_hidden_layers=5, sliding_window=6, rope_parameters=layered({**YARN, "rope_theta": 5e5, "attention_factor": 1.2}, {"rope_theta": 5e5})),
     {"config": old_rope}),
    ("olmo3 two bases", "olmo3", gated(sliding_window=4, attention_bias=True, tie_word_embeddings=True,
                                       layer_types=["full_attention", "sliding_attention", "sliding_attention"],
                                       rope_parameters=layered({**LLAMA3, "rope_theta": 4e3}, {"rope_theta": 50.0})), {}),
    ("deepseek_v3", "deepseek_v3", latent(), {}),
    ("deepseek_v3 yarn, old keys", "deepseek_v3", latent(attention_bias=True, v_head_dim=18, rope_parameters=DEEPSEEK_YARN), {"config": old_rope}),
    ("deepseek_v3 no q latent, halves", "deepseek_v3", latent(q_lora_rank=None, rope_interleave=False, tie_word_embeddings=True, first_k_dense_replace=3), {}),
    ("deepseek_v32", "deepseek_v32", indexed(), {}),
    ("deepseek_v32 another seed", "deepseek_v32", indexed(index_topk=5), {}),
    ("deepseek_v32 yarn, long", "deepseek_v32", indexed(index_topk=33, attention_bias=True, index_n_heads=24, rope_parameters=DEEPSEEK_YARN,
                                                        max_position_embeddings=256), {"length": 150, "steps": 0}),
    ("glm_moe_dsa", "glm_moe_dsa", indexed(n_group=1, topk_group=1), {}),
    ("glm_moe_dsa shared sets", "glm_moe_dsa", indexed(num_hidden_layers=5, first_k_dense_replace=5, indexer_types=["full", "full", "shared", "shared", "full"]), {}),
    ("deepseek_v3 experts", "deepseek_v3", latent(first_k_dense_replace=1), {"loose": False}),
    ("deepseek_v32 experts", "deepseek_v32", indexed(first_k_dense_replace=1), {"seed": 211}),
    ("glm_moe_dsa experts, shared sets", "glm_moe_dsa", indexed(first_k_dense_replace=1, indexer_types=["full", "shared", "shared"]), {}),
    ("qwen3_next", "qwen3_next", NEXT, {"tensors": mtp_beside, "seed": 103}),
    ("qwen3_next experts", "qwen3_next", {**NEXT, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 20,
                                          "shared_expert_intermediate_size": 24, "mlp_only_layers": [2]}, {"loose": False}),
    ("qwen3_next long", "qwen3_next", {**NEXT, "max_position_embeddings": 256, "tie_word_embeddings": True, "linear_key_head_dim": 20}, {"length": 203}),
    ("qwen3_next layer types, old keys", "qwen3_next", {**NEXT, "layer_types": ["full_attention", "linear_attention"] * 2, "linear_num_key_heads": 3,
                                                        "linear_num_value_heads": 3, "linear_conv_kernel_dim": 3, "attention_bias": True,
                                                        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}},
     {"config": [old_rope, interval_beside], "loose": False}),
    ("smollm3", "smollm3", gated(no_rope_layer_interval=2), {"config": old_rope}),
    ("smollm3 windows", "smollm3", gated(attention_bias=True, mlp_bias=True, tie_word_embeddings=False, no_rope_layers=[0, 1, 0], use_sliding_window=True,
                                         sliding_window=5, rope_parameters={**YARN, "rope_theta": 2e6}), {}),
]
EXPERTS = dict(moe_intermediate_size=20, num_experts_per_tok=3)
GLM = dict(head_dim=16, moe_intermediate_size=20, first_k_dense_replace=1)
CASES += [
    ("mixtral", "mixtral", gated(num_local_experts=5, num_experts_per_tok=2), {}),
    ("mixtral balanced", "mixtral", gated(num_local_experts=4, num_experts_per_tok=3, head_dim=10, sliding_window=9, tie_word_embeddings=True,
                                          output_router_logits=True, router_aux_loss_coef=0.7), {"config": old_rope}),
    ("qwen3_moe", "qwen3_moe", gated(**EXPERTS, head_dim=12, num_experts=6, norm_topk_prob=True, mlp_only_layers=[1]), {}),
    ("qwen3_moe balanced", "qwen3_moe", gated(**EXPERTS, head_dim=10, num_hidden_layers=4, num_experts=33, decoder_sparse_step=2, use_sliding_window=True, sliding_window=7,
                                              attention_bias=True, tie_word_embeddings=True, output_router_logits=True, router_aux_loss_coef=0.4), {}),
    ("glm4_moe", "glm4_moe", gated(**GLM, num_experts_per_tok=4, n_routed_experts=12, n_group=4, topk_group=2, n_shared_experts=2, routed_scaling_factor=1.7,
                                   use_qk_norm=True), {}),
    ("glm4_moe again", "glm4_moe", gated(**GLM, num_experts_per_tok=5, n_routed_experts=24, n_group=3, topk_group=2, use_qk_norm=True, tie_word_embeddings=True), {}),
    ("glm4_moe one group", "glm4_moe", gated(**GLM, num_experts_per_tok=3, n_routed_experts=7, n_shared_experts=1, norm_topk_prob=False, routed_scaling_factor=2.5,
                                             attention_bias=True), {"config": old_rope}),
    ("gpt_oss", "gpt_oss", gated(num_local_experts=6, num_experts_per_tok=3, head_dim=10, sliding_window=7), {}),
    ("gpt_oss long", "gpt_oss", gated(num_local_experts=4, num_experts_per_tok=1, head_dim=12, sliding_window=66, max_position_embeddings=256, attention_bias=False,
                                      swiglu_limit=1.5, rope_parameters={**YARN, "rope_theta": 1e3, "truncate": False}), {"length": 150}),
]
# Folders that have to be refused: what is done to a llama, and what the message has to say.
def without_config(folder):
    (folder / "config.json").unlink()


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def config_with(**keys):
    def edit(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    return edit


def tensors_with(change):
    def edit(folder):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
    return edit


REFUSED = [
    (without_config, ["config.json"]),
    (pickled, ["pytorch_model.bin", "safetensors"]),
    (config_with(quantization_config={"bits": 4}), ["config.json", "quantization_config"]),
    (config_with(model_type="lama"), ["config.json", "model_type", "llama"]),
    (config_with(rope_parameters={"rope_type": "longrope", "rope_theta": 1e4}), ["rope_parameters", "longrope", "yarn"]),
    (config_with(intermediate_size=45), ["mlp.gate_proj.weight", "[44, 36]", "[45, 36]"]),
    (config_with(tie_word_embeddings=True), ["lm_head.weight", "tie_word_embeddings"]),
    (config_with(num_hidden_layers=2), ["model.layers.2.", "config.json"]),
    (tensors_with(lambda t: t.pop("model.layers.1.mlp.up_proj.weight")), ["missing", "model.layers.1.mlp.up_proj.weight"]),
    (tensors_with(lambda t: t.update({"model.extra.weight": torch.ones(2)})), ["model.extra.weight"]),
    (tensors_with(lambda t: t.update({"model.norm.weight": torch.ones(36, dtype=torch.int32)})), ["model.norm.weight", "I32"]),
]

PACKED = ["deepseek_v32", "glm_moe_dsa shared sets", "gpt2", "pythia", "llama", "mistral", "qwen3 biases, windows", "gemma3", "olmo3", "qwen3_moe", "glm4_moe", "gpt_oss", "qwen3_next"]
ON_DISK = {"qwen2": torch.bfloat16, "llama": torch.float16}  # stored so, computed in float32

FAST = {"name": "fast", "gradients": True, "steps": STEPS, "decode": True}
MODES = [
    FAST,
    {**FAST, "name": "reference", "reference": True},
    {**FAST, "name": "fast-recomputed", "checkpointing": True, "decode": False},
    {**FAST, "name": "reference-recomputed", "reference": True, "checkpointing": True, "decode": False},
    {"name": "mixed", "products": "bfloat16", "gradients": True, "steps": STEPS},
    {"name": "mixed-reference", "products": "bfloat16", "reference": True, "gradients": True, "steps": STEPS},
    {"name": "bf16", "dtype": "bfloat16", "products": "bfloat16", "gradients": True},
]

CORRECTION = "e_score_correction_bias"  # a buffer of the router

# In bfloat16 a token may go to other experts than transformers sends it to: no tolerance would say anything.
EXPERT_FAMILIES = {"mixtral", "qwen3_moe", "glm4_moe", "gpt_oss"}
LOOSE_MODES = ["mixed", "mixed-reference", "bf16"]
# What rounds otherwise chooses other keys, so these are compared in float32 alone.
SPARSE = {"deepseek_v32", "glm_moe_dsa"}

failures = []


def check(ok, message):
    if not ok:
        failures.append(message)
        print("FAILED", message)


def listed(value):
    return value if isinstance(value, list) else [value]


def randomise(model, seed):
    """Weights far from their initial values: norms and biases differ from one and zero, logits spread."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith(("gate_up_proj", "down_proj")):  # experts: spread the clamped gate of gpt-oss too
                p.copy_(noise * p.shape[-2 if model.config.model_type == "gpt_oss" else -1] ** -0.5)
            elif "norm" in name or "ln_" in name:
                zero_centred = (model.config.model_type == "gemma3_text" or name.endswith("bias") or
                                model.config.model_type == "qwen3_next" and "linear_attn.norm" not in name)
                p.copy_(0.2 * noise + (0.0 if zero_centred else 1.0))
            elif name.endswith("bias"):
                p.copy_(0.1 * noise)
            elif "embed" in name or "wte" in name or "wpe" in name or "lm_head" in name:
                p.copy_(0.3 * noise)
            else:
                p.copy_(noise * p.shape[-1] ** -0.5)
        for name, b in model.named_buffers():
            if name.endswith(CORRECTION):
                b.copy_(0.2 * torch.randn(b.shape, generator=generator))


def build(case, folder, seed):
    name, model_type, keys, edits = case
    config = transformers.AutoConfig.for_model(model_type, **keys)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    randomise(model, seed)
    model.to(ON_DISK.get(name, torch.float32)).save_pretrained(folder, **({"max_shard_size": edits["shards"]} if "shards" in edits else {}))
    check(("shards" in edits) == (folder / "model.safetensors.index.json").exists(), f"{name}: in shards or not")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for edit in listed(edits.get("config", [])):
        edit(config)
    path.write_text(json.dumps(config))
    if "tensors" in edits:
        path = folder / "model.safetensors"
        save_file({k: v.contiguous() for k, v in edits["tensors"](load_file(path)).items()}, path, {"format": "pt"})
    # What transformers makes of the folder as it lies there is the truth.
    return load(folder)


def load(folder, dtype=torch.float32):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.eval()


class BoundaryGaps(torch.overrides.TorchFunctionMode):
    """Looks on while transformers chooses keys: how far the last score that is taken stands above the first that is not, at the least."""

    def __init__(self, topk):
        super().__init__()
        self.topk, self.least, self.rows = topk, float("inf"), 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.topk and args[1:2] == (self.topk,) and args[0].dim() == 3:
            scores = args[0].sort(-1, descending=True).values
            seen = scores > torch.finfo(scores.dtype).min / 2
            between = seen[..., self.topk] if scores.shape[-1] > self.topk else torch.zeros(0, dtype=torch.bool)
            if between.any():
                gaps = (scores[..., self.topk - 1] - scores[..., self.topk])[between] / scores[seen].abs().max()
                self.least, self.rows = min(self.least, gaps.min().item()), self.rows + int(between.sum())
        return function(*args, **(kwargs or {}))


def documents(seed):
    """Each row as documents one after another: (segments, positions), and their lengths."""
    generator = torch.Generator().manual_seed(seed)
    segments, positions, lengths = [], [], []
    for _ in range(BATCH):
        row = []
        while sum(row) < LENGTH:
            row.append(min(int(torch.randint(1, 12, (1,), generator=generator)), LENGTH - sum(row)))
        lengths.append(row)
        segments.append([i for i, n in enumerate(row) for _ in range(n)])
        positions.append([i for n in row for i in range(n)])
    return segments, positions, lengths


def forward(model, ids, lengths=None):
    """(logits [B, T, V], mean cross-entropy): all at once, or document by document."""
    if lengths is None:
        out = model(input_ids=ids, use_cache=False)
        loss = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        if getattr(out, "aux_loss", None) is not None:  # added to what is minimised, not to what is reported
            loss = loss + (model.config.router_aux_loss_coef * (out.aux_loss - out.aux_loss.detach()))
        return out.logits, loss
    rows, total, count = [], 0.0, 0
    for row, parts in zip(ids, lengths):
        pieces = []
        for piece in row.split(parts):
            logits = model(input_ids=piece[None], use_cache=False).logits[0]
            pieces.append(logits)
            if len(piece) > 1:
                total = total + torch.nn.functional.cross_entropy(logits[:-1], piece[1:], reduction="sum")
                count += len(piece) - 1
        rows.append(torch.cat(pieces))
    return torch.stack(rows), total / count


def gradients_on_disk(model, folder):
    """The gradients by the names and in the layout that the weights have on disk: those of a model whose weights they are."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for theirs, p in zip(other.parameters(), model.parameters(), strict=True):
            theirs.copy_(torch.zeros_like(p) if p.grad is None else p.grad)
    other.save_pretrained(folder)
    head = {"lm_head.weight": "embed_out.weight"} if model.config.model_type == "gpt_neox" else {}
    return {head.get(name, name): t for name, t in load_file(folder / "model.safetensors").items() if not name.endswith(CORRECTION)}


def oracle(folder, scratch, ids, lengths, steps=STEPS):
    """Logits, gradients and losses of transformers."""
    model = load(folder)
    logits, loss = forward(model, ids, lengths)
    loss.backward()
    gradients = gradients_on_disk(model, scratch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        _, loss = forward(model, ids, lengths)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    return logits.detach(), gradients, losses


def compare(label, out, mode, logits, gradients, losses, loose=None):
    tensors = load_file(out / f"{mode}.safetensors")
    numbers = json.loads((out / f"{mode}.json").read_text())
    scale = logits.abs().max().item()
    worst = {"logits": (tensors["logits"] - logits).abs().max().item() / scale}
    if "decode" in tensors:
        worst["decode"] = (tensors["decode"] - logits[0]).abs().max().item() / scale
    names = {k.removeprefix("grad.") for k in tensors if k.startswith("grad.") and not k.endswith(CORRECTION)}
    check(names == set(gradients), f"{label} {mode}: tensors {sorted(names ^ set(gradients))}")
    total = torch.cat([g.flatten() for g in gradients.values()]).norm().item()
    worst["gradients"] = 0.0
    for name in sorted(names & set(gradients)):
        theirs, ours = gradients[name], tensors[f"grad.{name}"]
        if theirs.shape != ours.shape:
            check(False, f"{label} {mode}: {name} has shape {list(ours.shape)}, expected {list(theirs.shape)}")
            continue
        error = max((ours - theirs).norm().item() - (1e-3 if loose else 1e-7) * total, 0.0) / max(theirs.norm().item(), 1e-30)
        worst["gradients"] = max(worst["gradients"], error)
        check(error <= (loose or GRADIENTS), f"{label} {mode}: gradient of {name} off by {error:.1e} of its norm")
        check("indexer" not in name or not ours.any(), f"{label} {mode}: the language model's loss reaches {name}")
    if "losses" in numbers:
        worst["losses"] = max(abs(a - b) for a, b in zip(numbers["losses"], losses, strict=True))
        check(losses[-1] < losses[0], f"{label}: ten steps did not lower the loss")
    limits = {"logits": loose or LOGITS, "decode": loose or LOGITS, "gradients": loose or GRADIENTS, "losses": loose or LOSSES}
    for what, value in worst.items():
        check(value <= limits[what], f"{label} {mode}: {what} differ by {value:.1e}")
    return worst


def same_bits(label, out, a, b):
    left, right = load_file(out / f"{a}.safetensors"), load_file(out / f"{b}.safetensors")
    for name in left.keys() & right.keys():
        check(torch.equal(left[name], right[name]), f"{label}: {name} has other bits in {b} than in {a}")
    check(json.loads((out / f"{a}.json").read_text()) == json.loads((out / f"{b}.json").read_text()), f"{label}: losses have other bits in {b} than in {a}")


def check_saved(label, original, saved, ids):
    """What C++ wrote: transformers reads the same model."""
    model, again = load(original), load(saved)
    theirs, ours = model.state_dict(), again.state_dict()
    check(theirs.keys() == ours.keys(), f"{label}: saved tensors {theirs.keys() ^ ours.keys()}")
    for name in theirs.keys() & ours.keys():
        check(torch.equal(theirs[name], ours[name]), f"{label}: {name} has other bits after saving")
    with torch.no_grad():
        check(torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits), f"{label}: other logits after saving")
    prompt = dict(input_ids=ids[:1, :5], attention_mask=torch.ones(1, 5, dtype=torch.long), max_new_tokens=4, do_sample=False)
    check(torch.equal(model.generate(**prompt), again.generate(**prompt)), f"{label}: generates something else after saving")
    check(again.config.dtype == torch.float32, f"{label}: config.json has no dtype")
    check(model.config.tie_word_embeddings == again.config.tie_word_embeddings, f"{label}: tied otherwise after saving")
    tied = model.config.tie_word_embeddings
    files = sorted(saved.glob("*.safetensors"))
    stored = set().union(*(load_file(f).keys() for f in files))
    check(tied != bool(stored & {"lm_head.weight", "embed_out.weight"}), f"{label}: tied is {tied}, stored {sorted(stored)[:2]}")
    names = set(load_file(files[0])) if len(files) == 1 else stored
    check(names == stored, f"{label}: tensors stored twice")


def check_eval(cairn, folder, scratch, ids):
    """Log-probabilities through the program."""
    lines, out = scratch / "ids.jsonl", scratch / "logprobs.jsonl"
    rows = [ids[0].tolist(), ids[1, :9].tolist(), ids[2, :2].tolist()]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = subprocess.run([cairn, "eval", str(folder), "--ids", str(lines), "--logprobs", str(out)], capture_output=True, text=True)
    check(done.returncode == 0, f"cairn eval --ids: exit {done.returncode}: {done.stderr.strip()}")
    if done.returncode:
        return
    model = load(folder)
    for row, line in zip(rows, out.read_text().splitlines(), strict=True):
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
        theirs = logprobs[:-1].gather(1, torch.tensor(row[1:])[:, None])[:, 0]
        ours = torch.tensor(json.loads(line))
        check(ours.shape == theirs.shape and (ours - theirs).abs().max() <= 1e-4, f"cairn eval --ids: {line[:80]} instead of {theirs.tolist()[:4]}")


def main():
    torch.set_num_threads(1)  # with so little work threads only wait for one another
    cairn = Path(sys.argv[1])
    driver = cairn.parent / "parity_driver"
    wanted = sys.argv[2:]
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        requests, oracles = [], {}
        for number, case in enumerate(CASES):
            name = case[0]
            if wanted and name not in wanted:
                continue
            folder = root / f"{number}"
            number = case[3].get("seed", number)
            model = build(case, folder, number)
            length, steps = case[3].get("length", LENGTH), case[3].get("steps", STEPS)
            ids = torch.randint(0, model.config.vocab_size, (BATCH, length), generator=torch.Generator().manual_seed(1000 + number))
            for packed in [False] + ([True] if name in PACKED else []):
                key = (name, packed)
                out = root / f"out-{number}{'-packed' if packed else ''}"
                modes = MODES if case[1] not in EXPERT_FAMILIES and case[3].get("loose", True) else [mode for mode in MODES if mode["name"] not in LOOSE_MODES]
                request = {"model": str(folder), "out": str(out), "ids": ids.tolist(), "modes": modes, "save": str(out / "saved")}
                lengths = None
                if packed:
                    request["segments"], request["positions"], lengths = documents(number)
                    request["modes"] = [{**mode, "decode": False} for mode in MODES[:3]]
                    request["shard_bytes"] = 6000  # and this one in shards
                requests.append(request)
                if case[1] in SPARSE:
                    with BoundaryGaps(case[2]["index_topk"]) as gaps:
                        truth = oracle(folder, root / "scratch", ids, lengths, steps)
                    check(gaps.rows > 0 and gaps.least > 1e-6, f"{name}: {gaps.rows} rows choose, the closest by {gaps.least:.1e} of the largest score")
                else:
                    truth = oracle(folder, root / "scratch", ids, lengths, steps)
                oracles[key] = (folder, out, ids, truth)
                if case[1] in SPARSE and not packed:
                    request["modes"] = [{**mode, "steps": steps} for mode in MODES[:4]]
        for number, (edit, words) in enumerate(REFUSED):
            folder = root / f"refused-{number}"
            build(("", "llama", gated(), {}), folder, 0)
            edit(folder)
            requests.append({"model": str(folder), "out": str(folder / "out"), "save": str(folder / "saved"), "refused": True})
        (root / "request.json").write_text(json.dumps({"cases": requests}))
        done = subprocess.run([driver, root / "request.json"], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        check(done.returncode == 0 and not done.stderr, f"parity_driver: exit {done.returncode}\n{done.stderr}")
        print(f"{'':40}{'logits':>10}{'decode':>10}{'gradients':>10}{'losses':>10}")
        for (name, packed), (folder, out, ids, truth) in oracles.items():
            label = name + (" packed" if packed else "")
            if (out / "error.txt").exists():
                check(False, f"{label}: {(out / 'error.txt').read_text()}")
                continue
            for mode in ["fast", "reference"]:
                worst = compare(label, out, mode, *truth)
                print(f"{label + ', ' + mode:40}" + "".join(f"{worst[k]:10.1e}" if k in worst else f"{'':10}" for k in ["logits", "decode", "gradients", "losses"]))
            same_bits(label, out, "fast", "fast-recomputed")
            check_saved(label, folder, out / "saved", ids)
            if not packed:
                same_bits(label, out, "reference", "reference-recomputed")
                for mode in LOOSE_MODES if (out / "mixed.json").exists() else []:
                    worst = compare(label, out, mode, *truth, loose=LOOSE)
                    print(f"{label + ', ' + mode:40}" + "".join(f"{worst[k]:10.1e}" if k in worst else f"{'':10}" for k in ["logits", "decode", "gradients", "losses"]))
        for number, (_, words) in enumerate(REFUSED):
            path = root / f"refused-{number}" / "out" / "error.txt"
            message = path.read_text() if path.exists() else "nothing was said"
            check(all(word in message for word in words), f"refusal: {message!r} does not name {words}")
        if not wanted:
            # One of each family.
            for name in {case[1]: case[0] for case in reversed(CASES)}.values():
                folder, out, ids, _ = oracles[(name, False)]
                check_eval(cairn, folder, out, ids)
    print(f"{len(failures)} failures" if failures else "all equal")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
