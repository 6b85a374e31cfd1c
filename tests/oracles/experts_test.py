"""Runs of mixtures of experts: the routing bias beside a numpy account, the same bits on any threads and ranks and in a
replay, losses and limits that act, upcycling, MXFP4 weights, settings that make no sense."""
import json
import os
import shutil
import socket
import subprocess

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

from harness import CAIRN, cairn, digests, journal, main, run_file, text, workspace

GLM = {"model.model_type": "glm4_moe", "model.hidden_size": 32, "model.intermediate_size": 48, "model.moe_intermediate_size": 12, "model.num_hidden_layers": 3,
       "model.num_attention_heads": 4, "model.num_key_value_heads": 2, "model.head_dim": 8, "model.n_routed_experts": 8, "model.num_experts_per_tok": 3,
       "model.n_group": 4, "model.topk_group": 2, "model.n_shared_experts": 1, "model.first_k_dense_replace": 1, "model.tie_word_embeddings": False}
QWEN = {"model.model_type": "qwen3_moe", "model.moe_intermediate_size": 12, "model.num_experts": 6, "model.num_experts_per_tok": 2, "model.norm_topk_prob": True,
        "model.head_dim": 8}
SHORT = {"optim.schedule.name": "constant", "optim.schedule.warmup": 0, "optim.schedule.decay": None}


def train(folder, name="run", check=True, env=None, **changes):
    path = os.path.join(folder, "text.txt")
    if not os.path.exists(path):
        with open(path, "w") as file:
            file.write(text())
    run = os.path.join(folder, name)
    done = cairn("train", run_file(folder, path, **{**SHORT, "train.steps": 6, "checkpoints.every": 3, **changes}), "--run", run, "--json", check=check, env=env)
    return run, done


def checkpoint(run, step):
    return os.path.join(run, "checkpoints", f"step-{step:08d}")


def bias_of(run, step, block):
    return load_file(os.path.join(checkpoint(run, step), "model.safetensors"))[f"model.layers.{block}.mlp.gate.e_score_correction_bias"].numpy()


def route(logits, bias, groups, topk_groups, topk):
    """DeepSeek-V3's choice, in numpy; stable sorting: of equal scores the lower expert."""
    choice = 1 / (1 + np.exp(-logits.astype(np.float64))) + bias
    grouped = choice.reshape(len(choice), groups, -1)
    value = np.sort(grouped, -1)[:, :, -2:].sum(-1)
    allowed = np.zeros_like(value, dtype=bool)
    np.put_along_axis(allowed, np.argsort(-value, axis=-1, kind="stable")[:, :topk_groups], True, axis=-1)
    choice = np.where(np.repeat(allowed, grouped.shape[-1], -1), choice, -np.inf)
    return np.argsort(-choice, axis=-1, kind="stable")[:, :topk]


def test_bias_beside_numpy():
    with workspace() as folder:
        speed = 0.01
        run, _ = train(folder, **GLM, **{"experts.bias_update_speed": speed, "checkpoints.every": 1})
        lines = {line["step"]: line for line in journal(run)}
        for block in (1, 2):
            for step in range(1, 7):
                counts = np.array(lines[step]["expert_tokens"][str(block)])
                assert counts.sum() == 8 * 32 * 3, counts
                before = bias_of(run, step - 1, block) if step > 1 else np.zeros(8, np.float32)
                expected = before + np.float32(speed) * np.sign(counts.mean() - counts).astype(np.float32)
                assert np.array_equal(bias_of(run, step, block), expected), (block, step)
                violation = lines[step]["layers"]["expert_violation"][str(block)]
                assert abs(violation - (counts.max() - counts.mean()) / counts.mean()) < 1e-12
                assert lines[step]["layers"]["dead_experts"][str(block)] == (counts == 0).sum()
        assert "0" not in lines[1]["expert_tokens"] and np.abs(bias_of(run, 6, 1)).max() > 0
        # The choice itself, from the logits that transformers computes with the weights before the step.
        step = 6
        shown = json.loads(cairn("data", "show", f"{run}@{step}", "--json").stdout)
        ids = torch.tensor([row["ids"] for row in shown["sequences"]])
        model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint(run, step - 1), dtype=torch.float32)
        logits = []
        hooks = [layer.mlp.gate.register_forward_hook(lambda m, i, o: logits.append(o[0])) for layer in model.model.layers[1:]]
        with torch.no_grad():
            model(input_ids=ids)
        for hook in hooks:
            hook.remove()
        for block in (1, 2):
            chosen = route(logits[block - 1].numpy(), bias_of(run, step - 1, block), 4, 2, 3)
            counts = np.bincount(chosen.ravel(), minlength=8)
            # Rounding may send a token whose scores nearly tie elsewhere.
            assert np.abs(counts - np.array(lines[step]["expert_tokens"][str(block)])).sum() <= 2, (counts, lines[step]["expert_tokens"])


BALANCED = {**QWEN, "model.router_aux_loss_coef": 0.02, "experts.router_z_loss": 0.001, "experts.sequence_aux_loss": 0.01, "experts.capacity_factor": 1.25}


def test_the_same_bits():
    with workspace() as folder:
        for name, model in {"glm": GLM, "balanced": BALANCED}.items():
            run, _ = train(folder, name, **model)
            truth = digests(run)
            for other, changes in {"threads": {"train.threads": 2}, "recomputed": {"train.activation_checkpointing": True}}.items():
                again, _ = train(folder, f"{name}-{other}", **model, **changes)
                assert digests(again) == truth, (name, other)
            replayed = json.loads(cairn("replay", run, "--from", 3, "--to", 6, "--json").stdout)
            assert replayed["first_divergence"] is None and replayed["verified"] and replayed["replayed"] == 3, replayed
            shutil.rmtree(checkpoint(run, 6))
            cairn("resume", run, "--json")
            assert digests(run) == truth, name
            # The plain twins and LibTorch's operators come to the same losses.
            for kernels in ("reference", "aten"):
                twin, _ = train(folder, f"{name}-{kernels}", **model, **{"train.kernels": kernels})
                for ours, theirs in zip(journal(run), journal(twin), strict=True):
                    assert abs(ours["loss"] - theirs["loss"]) < 1e-4, (name, kernels, ours["step"])
                    if "router_loss" in ours["layers"]:
                        for block, value in ours["layers"]["router_loss"].items():
                            assert abs(value - theirs["layers"]["router_loss"][block]) < 1e-4 * max(1, abs(value)), (kernels, block)


def test_ranks():
    with workspace() as folder:
        for name, model in {"glm": GLM, "balanced": BALANCED}.items():
            run, _ = train(folder, name, **model, **{"train.steps": 3})
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            file = run_file(folder, os.path.join(folder, "text.txt"), **{**SHORT, "train.steps": 3, "checkpoints.every": 3, **model, "parallel.zero": 1})
            ranks = []
            for rank in range(2):
                env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                ranks.append(subprocess.Popen([CAIRN, "train", file, "--run", os.path.join(folder, name + "-ranks"), "--json"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
            for process in ranks:
                out, err = process.communicate()
                assert process.returncode == 0, err[-2000:]
            both = os.path.join(folder, name + "-ranks")
            assert digests(both) == digests(run), name
            assert [line["expert_tokens"] for line in journal(both)] == [line["expert_tokens"] for line in journal(run)]


def test_losses_even_the_load():
    """From routers that prefer few experts, each way of balancing lowers the violation."""
    with workspace() as folder:
        def violation(name, **changes):
            run, _ = train(folder, name, **{**changes, "train.steps": 30, "model.init": {"name": "normal", "std": 0.3}, "optim.lr": 0.002})
            values = [sum(line["layers"]["expert_violation"].values()) for line in journal(run)]
            return sum(values[-5:]) / 5
        free = violation("free", **QWEN)
        assert violation("aux", **QWEN, **{"model.router_aux_loss_coef": 1.0}) < 0.7 * free
        assert violation("sequence", **QWEN, **{"experts.sequence_aux_loss": 1.0}) < 0.7 * free
        free = violation("free-glm", **GLM, **{"experts.bias_update_speed": 0})
        assert violation("bias", **GLM, **{"experts.bias_update_speed": 0.03}) < 0.7 * free


def logprobs(folder, model, ids):
    lines, out = os.path.join(folder, "ids.jsonl"), os.path.join(folder, "out.jsonl")
    with open(lines, "w") as file:
        for row in ids:
            file.write(json.dumps(row) + "\n")
    cairn("eval", model, "--ids", lines, "--logprobs", out)
    with open(out) as file:
        return np.array([json.loads(line) for line in file])


def test_upcycling():
    with workspace() as folder:
        ids = np.random.default_rng(0).integers(0, 256, (3, 30)).tolist()
        for model_type, mixture in {"llama": "mixtral", "qwen3": "qwen3_moe"}.items():
            run, _ = train(folder, model_type, **{"model.model_type": model_type})
            dense = logprobs(folder, checkpoint(run, 6), ids)
            for slices, topk in [(1, 2), (4, 4), (2, 4)]:
                out = os.path.join(folder, f"{mixture}-{slices}-{topk}")
                said = json.loads(cairn("upcycle", f"{run}@6", "--copies", 3, "--slices", slices, "--topk", topk, "--out", out, "--json").stdout)
                assert said["model_type"] == mixture and said["experts"] == 3 * slices, said
                assert np.abs(logprobs(folder, out, ids) - dense).max() < 1e-4, (mixture, slices)
                cairn("verify", out)
            transformers.AutoModelForCausalLM.from_pretrained(os.path.join(folder, f"{mixture}-1-2"))
            sparse, _ = train(folder, f"{mixture}-run", **{"train.steps": 3}, **from_weights(os.path.join(folder, f"{mixture}-4-4")))
            assert journal(sparse)[-1]["expert_tokens"]["1"]
            for arguments, word in [(["--slices", 5], "divisor"), (["--slices", 4, "--topk", 2], "multiple"), (["--copies", 1], "copies"), (["--topk", 9], "topk")]:
                refused = cairn("upcycle", run, *arguments, "--out", os.path.join(folder, "no"), check=False)
                assert refused.returncode == 2 and word in refused.stderr, refused.stderr


def from_weights(folder):
    keys = ["model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "max_position_embeddings", "tie_word_embeddings"]
    return {"model.from": folder, **{f"model.{key}": None for key in keys}}


def test_mxfp4():
    """Weights in MXFP4 are those that their bytes stand for."""
    with workspace() as folder:
        config = transformers.AutoConfig.for_model("gpt_oss", vocab_size=64, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
                                                   num_key_value_heads=2, head_dim=16, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=64,
                                                   eos_token_id=None, bos_token_id=None, pad_token_id=None)
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).float()
        plain, packed = os.path.join(folder, "plain"), os.path.join(folder, "packed")
        table = np.array([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6], np.float32)
        draw, tensors = np.random.default_rng(1), {}
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name.endswith(("gate_up_proj", "down_proj")):
                    experts, inputs, outputs = p.shape
                    nibbles = draw.integers(0, 16, (experts, outputs, inputs // 32, 32))
                    scales = draw.integers(118, 124, (experts, outputs, inputs // 32))
                    values = table[nibbles] * np.exp2(scales[..., None] - 127.0).astype(np.float32)
                    p.copy_(torch.from_numpy(values.reshape(experts, outputs, inputs)).transpose(1, 2))
                    tensors[name + "_blocks"] = torch.from_numpy((nibbles[..., 0::2] | nibbles[..., 1::2] << 4).astype(np.uint8))
                    tensors[name + "_scales"] = torch.from_numpy(scales.astype(np.uint8))
        model.save_pretrained(plain)
        shutil.copytree(plain, packed)
        stored = load_file(os.path.join(plain, "model.safetensors"))
        kept = {name: t for name, t in stored.items() if not name.endswith(("gate_up_proj", "down_proj"))}
        save_file({**kept, **tensors}, os.path.join(packed, "model.safetensors"), {"format": "pt"})
        path = os.path.join(packed, "config.json")
        settings = json.load(open(path))
        settings["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
        json.dump(settings, open(path, "w"))
        ids = draw.integers(0, 64, (2, 20)).tolist()
        assert np.array_equal(logprobs(folder, plain, ids), logprobs(folder, packed, ids))
        with torch.no_grad():
            theirs = model(input_ids=torch.tensor(ids)).logits.log_softmax(-1)[:, :-1].gather(2, torch.tensor(ids)[:, 1:, None])[..., 0]
        assert np.abs(logprobs(folder, packed, ids) - theirs.numpy()).max() < 1e-4
        out = os.path.join(folder, "out")
        cairn("export", packed, "--format", "hf", "--out", out)
        assert np.array_equal(logprobs(folder, out, ids), logprobs(folder, packed, ids))


def test_fp8():
    """Weights in FP8, a factor for each tile of 128 x 128, ragged tiles too, are those that their bytes stand for."""
    with workspace() as folder:
        config = transformers.AutoConfig.for_model(
            "deepseek_v3", vocab_size=96, hidden_size=160, intermediate_size=300, moe_intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, q_lora_rank=136, kv_lora_rank=64, qk_rope_head_dim=16, qk_nope_head_dim=32, v_head_dim=32, n_routed_experts=4,
            num_experts_per_tok=2, n_shared_experts=1, n_group=2, topk_group=1, first_k_dense_replace=1, max_position_embeddings=64)
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).float()
        plain, packed = os.path.join(folder, "plain"), os.path.join(folder, "packed")
        model.save_pretrained(plain)
        stored, tiled = load_file(os.path.join(plain, "model.safetensors")), {}
        for name, tensor in list(stored.items()):
            if tensor.dim() != 2 or not name.endswith("_proj.weight"):
                continue
            rows, columns = tensor.shape
            factors = torch.zeros(-(-rows // 128), -(-columns // 128))
            packed_tensor = torch.zeros(rows, columns, dtype=torch.float8_e4m3fn)
            for i in range(0, rows, 128):
                for j in range(0, columns, 128):
                    tile = tensor[i:i + 128, j:j + 128]
                    factors[i // 128, j // 128] = tile.abs().max() / 448
                    packed_tensor[i:i + 128, j:j + 128] = (tile / factors[i // 128, j // 128]).to(torch.float8_e4m3fn)
                    stored[name][i:i + 128, j:j + 128] = packed_tensor[i:i + 128, j:j + 128].float() * factors[i // 128, j // 128]
            tiled[name], tiled[name + "_scale_inv"] = packed_tensor, factors
        assert len(tiled) > 20
        save_file(stored, os.path.join(plain, "model.safetensors"), {"format": "pt"})
        shutil.copytree(plain, packed)
        weights = os.path.join(packed, "model.safetensors")
        save_file({**stored, **tiled}, weights, {"format": "pt"})
        path = os.path.join(packed, "config.json")
        settings = json.load(open(path))
        settings["quantization_config"] = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
        json.dump(settings, open(path, "w"))
        ids = np.random.default_rng(1).integers(0, 96, (2, 20)).tolist()
        assert np.array_equal(logprobs(folder, plain, ids), logprobs(folder, packed, ids))
        with torch.no_grad():
            model = transformers.AutoModelForCausalLM.from_pretrained(plain).float()
            theirs = model(input_ids=torch.tensor(ids)).logits.log_softmax(-1)[:, :-1].gather(2, torch.tensor(ids)[:, 1:, None])[..., 0]
        assert np.abs(logprobs(folder, packed, ids) - theirs.numpy()).max() < 1e-4

        def refused(change, *words):
            save_file({**stored, **tiled, **change}, weights, {"format": "pt"})
            done = cairn("eval", packed, "--ids", os.path.join(folder, "ids.jsonl"), "--logprobs", os.path.join(folder, "no.jsonl"), check=False)
            assert done.returncode == 1 and all(word in done.stderr for word in words), done.stderr
        with open(os.path.join(folder, "ids.jsonl"), "w") as file:
            file.write(json.dumps(ids[0]))
        name = next(name for name in tiled if not name.endswith("_scale_inv"))
        refused({name + "_scale_inv": torch.ones(1, 7)}, "factors", "[1, 7]")
        refused({name: stored[name].to(torch.float8_e5m2)}, name, "F8_E5M2")
        settings["quantization_config"]["weight_block_size"] = [64, 64]
        json.dump(settings, open(path, "w"))
        refused({}, "weight_block_size", "[64,64]")
        settings["quantization_config"] = {"quant_method": "gptq", "bits": 4}
        json.dump(settings, open(path, "w"))
        refused({}, "quantization_config", "gptq")


def test_measures():
    with workspace() as folder:
        run, _ = train(folder, **GLM)
        cairn("replay", run, "--from", 3, "--to", 5, "--probe", "expert_load")
        with open(os.path.join(run, "probes", "expert_load.jsonl")) as file:
            found = [json.loads(line) for line in file]
        assert {line["name"] for line in found} == {"layer.1", "layer.2"} and {line["step"] for line in found} == {4, 5}, found
        lines = {line["step"]: line for line in journal(run)}
        for line in found:
            counts = np.array(lines[line["step"]]["expert_tokens"][line["name"].removeprefix("layer.")])
            assert np.allclose(line["value"], counts / counts.mean()), line
        analysed = json.loads(cairn("analyze", run, "expert_load", "--json").stdout)
        assert analysed, analysed
        with open(os.path.join(run, "analysis", "expert_violation.jsonl")) as file:
            assert {json.loads(line)["name"] for line in file} == {"layer.1", "layer.2"}


def test_mistakes():
    with workspace() as folder:
        for model, changes, words in [
            ({}, {"experts.bias_update_speed": 0.1}, ["experts", "the model has none"]),
            (QWEN, {"model.num_experts_per_tok": 7}, ["model.num_experts_per_tok", "found 7", "at most num_experts (6)"]),
            (QWEN, {"model.router_aux_loss_coef": -1}, ["router_aux_loss_coef", "found -1"]),
            (GLM, {"model.n_group": 3}, ["model.n_group", "divisor of n_routed_experts (8)"]),
            (GLM, {"model.n_group": 8}, ["model.n_group", "at least two"]),
            (GLM, {"model.topk_group": 5}, ["model.topk_group", "at most n_group (4)"]),
            (GLM, {"model.topk_group": 1}, ["model.num_experts_per_tok", "at most the 2 experts"]),
            (GLM, {"model.scoring_func": "softmax"}, ["scoring_func", "sigmoid"]),
            (GLM, {"experts.capacity_factor": -1}, ["experts.capacity_factor"]),
            (GLM, {"experts.bias_speed": 1}, ["bias_speed", "bias_update_speed"]),
        ]:
            _, done = train(folder, check=False, **{**model, **changes})
            assert done.returncode == 2 and all(word in done.stderr for word in words), (changes, done.stderr)


if __name__ == "__main__":
    main([test_bias_beside_numpy, test_the_same_bits, test_ranks, test_losses_even_the_load, test_upcycling, test_mxfp4, test_fp8, test_measures, test_mistakes])
