"""Supervised fine-tuning: the loss is that of transformers on the completions alone, the same bits on any number of threads, after a
resume and in a replay; what makes no example is refused."""
import json
import os

import numpy as np
import torch
import transformers

from harness import cairn, journal, main, run_file, workspace

CONTEXT = 48


def examples(folder, count=40):
    draw = np.random.default_rng(3)
    pairs = []
    for _ in range(count):
        a, b = draw.integers(0, 10 ** int(draw.integers(1, 5)), 2)
        pairs.append({"question": f"{a}+{b}", "answer": str(a + b)})
    path = os.path.join(folder, "sums.jsonl")
    with open(path, "w") as file:
        file.write("".join(json.dumps(pair) + "\n" for pair in pairs))
    return path, pairs


def settings(path, **changes):
    return {"data.train": [{"jsonl": path, "prompt": "{question}=", "completion": "{answer}"}], "data.context": CONTEXT,
            "data.validation_fraction": 0.2, "train.batch": 4, "train.micro_batch": 1, "train.lanes": 4, "train.steps": 12,
            "optim.schedule.name": "constant", "optim.schedule.warmup": 0, "optim.schedule.decay": None,
            "checkpoints.every": 4, "checkpoints.log_spaced": True, "eval.every": 4, **changes}


def sft_file(folder, path, **changes):
    file = run_file(folder, path, **settings(path, **changes))
    tree = json.load(open(file))
    tree["objective"] = "sft"
    with open(file, "w") as out:
        json.dump(tree, out)
    return file


def completion_nll(model, pairs):
    """Sum of nats and count over the completions' tokens and the end, each example on its own; ids are bytes."""
    total, count = 0.0, 0
    eos = model.config.eos_token_id
    for pair in pairs:
        prompt, answer = (pair["question"] + "=").encode(), pair["answer"].encode()
        ids = list(prompt) + list(answer) + ([] if eos is None else [eos])
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits.double().log_softmax(-1)[0]
        for t in range(len(prompt), len(ids)):
            total -= logprobs[t - 1, ids[t]].item()
            count += 1
    return total, count


def shown(run, step):
    return json.loads(cairn("data", "show", f"{run}@{step}", "--json").stdout)["sequences"]


def documents_of(run, step):
    return sorted(int(document["id"].split(":")[1]) for row in shown(run, step) for document in row["documents"])


def predicted_of(run, step):
    return sum(target >= 0 for row in shown(run, step) for target in row["targets"])


def test_loss_is_that_of_the_completions():
    with workspace() as folder:
        path, pairs = examples(folder)
        run = os.path.join(folder, "run")
        cairn("train", sft_file(folder, path), "--run", run, "--json")
        lines = {line["step"]: line for line in journal(run)}
        for step in (1, 5, 9):  # the state before them is stored
            documents = documents_of(run, step)
            assert len(documents) == len(set(documents)) and documents
            folder_of = os.path.join(run, "checkpoints", f"step-{step - 1:08d}")
            model = transformers.AutoModelForCausalLM.from_pretrained(folder_of).float()
            total, count = completion_nll(model, [pairs[d] for d in documents])
            assert predicted_of(run, step) == count
            assert abs(lines[step]["loss"] - total / count) < 2e-5, (step, lines[step]["loss"], total / count)
        assert lines[12]["eval"]["validation"]["nll"] < lines[4]["eval"]["validation"]["nll"]
        trained = {d for step in range(1, 13) for d in documents_of(run, step)}
        held = [pair for d, pair in enumerate(pairs) if d not in trained]
        assert 0 < len(held) < 20
        model = transformers.AutoModelForCausalLM.from_pretrained(os.path.join(run, "checkpoints", "step-00000012")).float()
        total, count = completion_nll(model, held)
        assert abs(lines[12]["eval"]["validation"]["nll"] - total / count) < 2e-5


def digests(run):
    return [line["digest"] for line in journal(run)]


def test_the_same_bits():
    with workspace() as folder:
        path, _ = examples(folder)
        file = sft_file(folder, path)
        runs = []
        for name, more in (("one", ["train.threads=1"]), ("two", ["train.threads=2", "train.micro_batch=1"]), ("half", ["train.steps=7"])):
            runs.append(os.path.join(folder, name))
            cairn("train", file, "--run", runs[-1], "--json", *more)
        assert digests(runs[0]) == digests(runs[1]) and digests(runs[0])[:7] == digests(runs[2])
        done = json.loads(cairn("replay", runs[0], "--from", 0, "--to", 12, "--json").stdout)
        assert done["replayed"] == 12 and done["verified"] and done["first_divergence"] is None, done


def test_mistakes():
    with workspace() as folder:
        path, _ = examples(folder)

        def refused(*words, status=2, **changes):
            done = cairn("train", sft_file(folder, path, **changes), "--run", os.path.join(folder, "no"), check=False)
            assert done.returncode == status and all(word in done.stderr for word in words), (done.returncode, done.stderr)
        refused("data.train.0", "prompt and completion", **{"data.train": [{"text": path}]})
        refused("completion", **{"data.train": [{"jsonl": path, "prompt": "{question}"}]})
        refused("mask_documents", **{"data.mask_documents": False})
        refused("overlong", "truncate", **{"data.overlong": "wrap"})
        refused("line 1", "'reply'", "answer", status=1, **{"data.train": [{"jsonl": path, "prompt": "{question}", "completion": "{reply}"}]})
        refused("example", "context", status=1, **{"data.overlong": "error", "data.context": 8})
        file = run_file(folder, path, **settings(path))
        done = cairn("train", file, "--run", os.path.join(folder, "no"), check=False)
        assert done.returncode == 2 and "objective: sft" in done.stderr, done.stderr
        said = cairn("train", sft_file(folder, path, **{"data.context": 10}), "--run", os.path.join(folder, "cut"), "train.steps=1").stdout
        assert "longer than 10 tokens and are cut" in said, said


if __name__ == "__main__":
    main([test_loss_is_that_of_the_completions, test_the_same_bits, test_mistakes])
