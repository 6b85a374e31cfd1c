"""Modules that predict further tokens, as a user trains them: their losses beside transformers' blocks, the same bits on any
threads and ranks and in a replay, text that is the same with drafts, folders with and without them, settings that make no sense."""
# labels: 
import json
import os
import shutil
import socket
import subprocess
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file

from harness import CAIRN, cairn, digests, journal, main, run_file, text, workspace

EXPERTS = {"model.n_routed_experts": 6, "model.num_experts_per_tok": 2, "model.moe_intermediate_size": 12, "model.n_group": 1, "model.topk_group": 1,
           "model.n_shared_experts": 1, "model.first_k_dense_replace": 1}
LATENT = {**EXPERTS, "model.num_key_value_heads": 4, "model.q_lora_rank": 20, "model.kv_lora_rank": 12, "model.qk_nope_head_dim": 10, "model.qk_rope_head_dim": 6,
          "model.v_head_dim": 14}
INDEX = {"model.index_topk": 7, "model.index_n_heads": 16, "model.index_head_dim": 8}
FAMILIES = {
    "deepseek_v3": {**LATENT, "model.num_nextn_predict_layers": 2},
    "deepseek_v32": {**LATENT, **INDEX, "model.num_nextn_predict_layers": 1},
    "glm4_moe": {**EXPERTS, "model.head_dim": 8, "model.use_qk_norm": True, "model.num_nextn_predict_layers": 3},
    "glm_moe_dsa": {**LATENT, **INDEX, "model.indexer_types": ["full", "shared"], "model.num_nextn_predict_layers": 2},
    "qwen3_next": {"model.num_nextn_predict_layers": 1, "model.head_dim": 16, "model.num_experts": 6, "model.num_experts_per_tok": 2, "model.moe_intermediate_size": 12,
                   "model.shared_expert_intermediate_size": 12, "model.layer_types": ["full_attention", "linear_attention"], "model.linear_num_key_heads": 2,
                   "model.linear_num_value_heads": 4, "model.linear_key_head_dim": 8, "model.linear_value_head_dim": 12},
}
LAYERS = 2


def train(folder, family, name="run", check=True, **changes):
    path = os.path.join(folder, "text.txt")
    if not os.path.exists(path):
        with open(path, "w") as file:
            file.write(text())
    run = os.path.join(folder, name)
    settings = {"model.model_type": family, "model.tie_word_embeddings": False, "model.num_hidden_layers": LAYERS, **FAMILIES.get(family, {}),
                "optim.schedule.name": "constant", "optim.schedule.warmup": 0, "optim.schedule.decay": None, "train.steps": 6, "checkpoints.every": 3, **changes}
    done = cairn("train", run_file(folder, path, **settings), "--run", run, "--json", check=check)
    return run, done


def checkpoint(run, step):
    return os.path.join(run, "checkpoints", f"step-{step:08d}")


def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float().eval()


def module_names(family, module):
    """Where the module's own tensors stand, and the prefix of its block."""
    if family == "qwen3_next":
        own = {"enorm": "mtp.pre_fc_norm_embedding.weight", "hnorm": "mtp.pre_fc_norm_hidden.weight", "eh_proj": "mtp.fc.weight", "norm": "mtp.norm.weight"}
        return own, "mtp.layers.0."
    block = f"model.layers.{LAYERS + module}."
    return {"enorm": block + "enorm.weight", "hnorm": block + "hnorm.weight", "eh_proj": block + "eh_proj.weight", "norm": block + "shared_head.norm.weight"}, block


def module_block(folder, source, family, module):
    """The module's block and norm as transformers' model of one layer: its last hidden state is norm(block(inputs_embeds))."""
    tensors = load_file(os.path.join(source, "model.safetensors"))
    own, prefix = module_names(family, module)
    one = {"model.layers.0." + name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix) and name not in own.values()}
    one.update({"model.norm.weight": tensors[own["norm"]], **{name: tensors[name] for name in ("model.embed_tokens.weight", "lm_head.weight")}})
    config = json.load(open(os.path.join(source, "config.json")))
    config.update({"num_hidden_layers": 1, "num_nextn_predict_layers": 0})
    for key, value in {"first_k_dense_replace": 0, "layer_types": ["full_attention" if family == "qwen3_next" else "indexed_attention"], "mlp_layer_types": ["sparse"],
                       "indexer_types": ["full"]}.items():
        if key in config:
            config[key] = value
    path = os.path.join(folder, f"module-{module}")
    os.makedirs(path)
    save_file({name: t.contiguous() for name, t in one.items()}, os.path.join(path, "model.safetensors"), {"format": "pt"})
    json.dump(config, open(os.path.join(path, "config.json"), "w"))
    return load(path).model, {name: tensors[t].float() for name, t in own.items()}


def rms(x, weight, config):
    weight = weight + 1 if config.model_type == "qwen3_next" else weight  # stored around zero
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + config.rms_norm_eps) * weight


def module_losses(folder, source, family, ids, targets):
    """DeepSeek-V3 report, equations 21 to 24, over sequences ids [B, T] and their next tokens."""
    trunk = load(source)
    losses = []
    with torch.no_grad():
        hidden = trunk.model(ids).last_hidden_state  # after model.norm
        length = ids.shape[1]
        for module in range(trunk.config.num_nextn_predict_layers):
            d = module + 1
            block, own = module_block(folder, source, family, module)
            # Position i reads token i + d; the last d positions predict nothing, and none before sees them.
            embedded = trunk.model.embed_tokens(ids[:, d:])
            u = torch.cat([rms(embedded, own["enorm"], trunk.config), rms(hidden[:, :length - d], own["hnorm"], trunk.config)], -1) @ own["eh_proj"].T
            hidden = block(inputs_embeds=u).last_hidden_state
            logits = trunk.lm_head(hidden)
            losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, d:].flatten().long()).item())
    return losses


def sequences(run, step):
    """The ids [B, T + 1] of a step's batch: the next token of a sequence's last one stands in the text alone."""
    eos = json.load(open(os.path.join(checkpoint(run, 0), "config.json")))["eos_token_id"]
    stream = [id for document in text().split("<|endoftext|>") for id in [*document.encode(), eos]]
    shown = json.loads(cairn("data", "show", f"{run}@{step}", "--json").stdout)["sequences"]
    rows = [stream[row["window"] * len(row["ids"]):][:len(row["ids"]) + 1] for row in shown]
    assert [row[:-1] for row in rows] == [row["ids"] for row in shown]
    return torch.tensor(rows)


def test_losses_beside_transformers():
    for family in FAMILIES:
        with workspace() as folder:
            run, _ = train(folder, family, **{"train.steps": 4, "checkpoints.every": 1, "checkpoints.at": [0], "optim.lr": 0.01, "data.validation_fraction": 0})
            for step in (1, 4):
                rows = sequences(run, step)
                expected = module_losses(os.path.join(folder, str(step)), checkpoint(run, step - 1), family, rows[:, :-1], rows[:, 1:])
                line = next(line for line in journal(run) if line["step"] == step)
                found = [line["layers"]["mtp_loss"][str(LAYERS + m)] for m in range(len(expected))]
                assert all(abs(a - b) < 3e-5 for a, b in zip(found, expected, strict=True)), (family, step, found, expected)
                assert abs(line["mtp_loss"] - sum(expected) / len(expected)) < 3e-5, (family, step)


def test_the_same_bits():
    with workspace() as folder:
        for family in ("deepseek_v3", "deepseek_v32", "qwen3_next"):
            packed = {"data.mask_documents": True, "train.mtp_loss_scaling_factor": 0.3}
            run, _ = train(folder, family, family, **packed)
            truth = digests(run)
            for other, changes in {"threads": {"train.threads": 2}, "recomputed": {"train.activation_checkpointing": True}}.items():
                again, _ = train(folder, family, f"{family}-{other}", **packed, **changes)
                assert digests(again) == truth, (family, other)
            replayed = json.loads(cairn("replay", run, "--from", 3, "--to", 6, "--json").stdout)
            assert replayed["first_divergence"] is None and replayed["verified"] and replayed["replayed"] == 3, replayed
            shutil.rmtree(checkpoint(run, 6))
            cairn("resume", run, "--json")
            assert digests(run) == truth, family
            lighter, _ = train(folder, family, f"{family}-lighter", **{**packed, "train.mtp_loss_scaling_factor": 0.1})
            assert digests(lighter) != truth, family


def test_ranks():
    with workspace() as folder:
        run, _ = train(folder, "deepseek_v3", "alone", **{"train.steps": 3})
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        both, ranks = os.path.join(folder, "ranks"), []
        file = os.path.join(run, "run.yaml")
        for rank in range(2):
            env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            ranks.append(subprocess.Popen([CAIRN, "train", file, "parallel.zero=1", "--run", both, "--json"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        for process in ranks:
            out, err = process.communicate()
            assert process.returncode == 0, err[-2000:]
        assert digests(both) == digests(run)
        assert [line["mtp_loss"] for line in journal(both)] == [line["mtp_loss"] for line in journal(run)]


def test_drafts_leave_the_text_alone():
    with workspace() as folder:
        for family in ("deepseek_v3", "deepseek_v32", "glm4_moe", "qwen3_next"):
            run, _ = train(folder, family, family, **{"train.steps": 40, "checkpoints.every": 40, "optim.lr": 0.01})
            for temperature in (0, 1):
                arguments = ("generate", run, "--prompt", "The way of", "--max-tokens", 50, "--temperature", temperature, "--json")
                plain, drafted = json.loads(cairn(*arguments).stdout), json.loads(cairn(*arguments, "--draft", "mtp").stdout)
                draft = drafted.pop("draft")
                assert drafted == plain, (family, temperature, plain, drafted)
                assert draft["proposed"] > 0 and 0 <= draft["accepted"] <= draft["proposed"], draft
                assert draft["acceptance_rate"] == draft["accepted"] / draft["proposed"], draft
                if temperature == 0:
                    assert draft["accepted"] > 0, (family, draft)
        refused = cairn("generate", run, "--prompt", "x", "--draft", "eagle", check=False)
        assert refused.returncode != 0 and "draft: found 'eagle', expected mtp" in refused.stderr, refused.stderr


def test_folders_with_and_without():
    with workspace() as folder:
        run, _ = train(folder, "deepseek_v3", **{"model.num_nextn_predict_layers": 1})
        source = checkpoint(run, 6)
        # transformers keeps the key and drops the tensors.
        dropped = os.path.join(folder, "dropped")
        load(source).save_pretrained(dropped)
        shutil.copy(os.path.join(source, "tokenizer.json"), dropped)
        assert not any(name.startswith(f"model.layers.{LAYERS}.") for name in load_file(os.path.join(dropped, "model.safetensors")))
        arguments = ("--prompt", "The way of", "--max-tokens", 20, "--temperature", 0, "--json")
        assert json.loads(cairn("generate", dropped, *arguments).stdout)["ids"] == json.loads(cairn("generate", run, *arguments).stdout)["ids"]
        refused = cairn("generate", dropped, *arguments, "--draft", "mtp", check=False)
        assert refused.returncode != 0 and "no modules that predict further tokens" in refused.stderr, refused.stderr

        def start(name, origin, check=True, **changes):
            data = {"data.train": [{"text": os.path.join(folder, "text.txt")}], "data.context": 32, "data.cache": os.path.join(folder, "cache")}
            tree = {"seed": 5, "model": {"from": origin, **changes.pop("model", {})}, "train": {"steps": 2, "batch": 4, "lanes": 1, **changes.pop("train", {})}}
            for key, value in data.items():
                tree.setdefault("data", {})[key.removeprefix("data.")] = value
            path = os.path.join(folder, name + ".yaml")
            json.dump(tree, open(path, "w"))
            to = os.path.join(folder, name)
            return to, cairn("train", path, "--run", to, "--json", check=check)

        def tensors(run):
            return load_file(os.path.join(checkpoint(run, 2), "model.safetensors"))

        own = f"model.layers.{LAYERS}.eh_proj.weight"
        kept, _ = start("kept", source)  # as the weights have them
        assert own in tensors(kept) and "mtp_loss" in journal(kept)[0]
        left, _ = start("left", source, model={"num_nextn_predict_layers": 0})
        assert own not in tensors(left) and "mtp_loss" not in journal(left)[0]
        without, _ = start("without", dropped)
        assert own not in tensors(without)
        more, _ = start("more", dropped, model={"num_nextn_predict_layers": 2})
        assert own in tensors(more) and len(journal(more)[0]["layers"]["mtp_loss"]) == 2
        cairn("verify", more)
        _, refused = start("refused", dropped, check=False, train={"mtp_loss_scaling_factor": 0.3})
        assert refused.returncode != 0 and "mtp_loss_scaling_factor: found 0.3" in refused.stderr, refused.stderr


def test_settings_that_make_no_sense():
    with workspace() as folder:
        for changes, complaint in [({"train.mtp_loss_scaling_factor": 0.3}, "the model has no modules that predict further tokens"),
                                   ({"model.num_nextn_predict_layers": 1}, "unknown key for model_type llama")]:
            _, done = train(folder, "llama", "refused", check=False, **changes)
            assert done.returncode != 0 and complaint in done.stderr, (changes, done.stderr)
        _, done = train(folder, "glm4_moe", "refused", check=False, **{"model.num_nextn_predict_layers": 40})
        assert done.returncode != 0 and "data.context: found 32" in done.stderr, done.stderr
        _, done = train(folder, "qwen3_next", "refused", check=False, **{"model.num_nextn_predict_layers": 2})
        assert done.returncode != 0 and "expected 0 or 1" in done.stderr, done.stderr


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    main([test_losses_beside_transformers, test_the_same_bits, test_ranks, test_drafts_leave_the_text_alone, test_folders_with_and_without,
          test_settings_that_make_no_sense])
