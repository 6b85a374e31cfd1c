"""A dense checkpoint made sparse and dense again: an indexer is added to a llama of transformers, learns while the rest stands still,
and is dropped; and folders of our own families are taken by nobody for dense ones."""
import json
import os

from harness import cairn, journal, main, run_file, text, workspace

try:
    import torch
    import transformers
    from safetensors.torch import load_file
except ImportError:
    torch = None

INDEXER = {"model.model_type": "llama_dsa", "model.index_topk": 8, "model.index_n_heads": 4}


def dense_model(folder):
    torch.manual_seed(3)
    config = transformers.LlamaConfig(vocab_size=257, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                                      num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=256, pad_token_id=None)
    path = os.path.join(folder, "dense")
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


def settings_file(folder, dense, **changes):
    """A run file that starts from weights: it has no shape of its own."""
    path = run_file(folder, write_text(folder), **{"train.steps": 6, "checkpoints.every": 3, "optim.schedule": {"name": "constant"}, **changes})
    tree = json.load(open(path))
    tree["model"] = {"from": dense, **{k: v for k, v in tree["model"].items() if k == "model_type" or k.startswith("index_")}}
    if tree["model"]["model_type"] == "llama":
        del tree["model"]["model_type"]
    json.dump(tree, open(path, "w"))
    return path


def write_text(folder):
    path = os.path.join(folder, "text.txt")
    with open(path, "w") as file:
        file.write(text())
    return path


def weights(folder):
    return load_file(os.path.join(folder, "model.safetensors"))


def test_a_dense_checkpoint_becomes_sparse_and_dense_again():
    if torch is None:
        print("skipped: no transformers")
        return
    with workspace() as folder:
        dense, run = dense_model(folder), os.path.join(folder, "run")
        cairn("train", settings_file(folder, dense, **INDEXER, **{"indexer.mode": "warmup"}), "--run", run, "--json")
        before, after = weights(dense), weights(os.path.join(run, "checkpoints", "step-00000006"))
        new = {name for name in after if ".self_attn.indexer." in name}
        assert len(new) == 2 * 5 and set(after) - new == set(before), sorted(set(after) ^ set(before))
        for name in before:
            assert torch.equal(after[name], before[name]), f"{name} moved while the indexer alone learns"
        first = weights(os.path.join(run, "checkpoints", "step-00000003"))
        assert all(not torch.equal(after[name], first[name]) for name in new if "bias" not in name), "the indexer does not learn"
        lines = journal(run)
        assert lines[-1]["step"] == 6
        # transformers takes it for nothing that it knows.
        try:
            transformers.AutoConfig.from_pretrained(os.path.join(run, "checkpoints", "step-00000006"))
            raise AssertionError("transformers loads a sparse llama")
        except (ValueError, KeyError) as error:
            assert "llama_dsa" in str(error), error
        # Dense again: the bits that it came with.
        out = os.path.join(folder, "out")
        cairn("export", run + "@6", "--drop-indexer", "--out", out)
        back = transformers.AutoModelForCausalLM.from_pretrained(out)
        assert type(back).__name__ == "LlamaForCausalLM"
        assert weights(out).keys() == before.keys() and all(torch.equal(weights(out)[k], before[k]) for k in before)
        config = json.load(open(os.path.join(out, "config.json")))
        assert not any(key.startswith("index_") for key in config), config
        cairn("verify", out)
        assert "no indexer" in cairn("export", dense, "--drop-indexer", "--out", os.path.join(folder, "none"), check=False).stderr
        # Every step again, bit for bit.
        replayed = json.loads(cairn("replay", run, "--from", "0", "--to", "6", "--json").stdout)
        assert replayed["replayed"] == 6 and replayed["verified"], replayed


def test_all_keys_chosen_is_the_dense_model():
    if torch is None:
        print("skipped: no transformers")
        return
    with workspace() as folder:
        dense = dense_model(folder)
        keys = {**INDEXER, "model.index_topk": 32, "train.steps": 4, "checkpoints.every": 4}
        losses = []
        for name, changes in [("sparse", {**keys, "indexer.train": "model"}), ("dense", {"model.model_type": "llama", "train.steps": 4})]:
            run = os.path.join(folder, name)
            cairn("train", settings_file(folder, dense, **changes), "--run", run, "--json")
            losses.append([line["loss"] for line in journal(run)])
        assert all(abs(a - b) < 2e-5 for a, b in zip(*losses, strict=True)), losses


def test_what_does_not_fit_is_refused():
    if torch is None:
        print("skipped: no transformers")
        return
    with workspace() as folder:
        dense = dense_model(folder)
        for changes, words in [
            ({"model.model_type": "qwen3_dsa", "model.index_topk": 8}, ["model.model_type", "qwen3_dsa", "llama"]),
            ({"model.model_type": "llama_dsa", "model.index_topk": 0}, ["model.index_topk", "0"]),
            ({"model.model_type": "llama_dsa", "model.index_head_dim": 4}, ["model.index_head_dim"]),
            ({"model.model_type": "llama_dsa", "model.index_top": 4}, ["model.index_top", "index_topk"]),
            ({"model.model_type": "llama", "indexer.mode": "warmup"}, ["indexer"]),
        ]:
            done = cairn("train", settings_file(folder, dense, **changes), "--run", os.path.join(folder, "refused"), check=False)
            assert done.returncode in (1, 2) and all(word in done.stderr for word in words), (changes, done.stderr)


if __name__ == "__main__":
    main([test_a_dense_checkpoint_becomes_sparse_and_dense_again, test_all_keys_chosen_is_the_dense_model, test_what_does_not_fit_is_refused])
