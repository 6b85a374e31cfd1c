"""GRPO: completions are sampled, judged and learned from by the number of the step: the same bits on any number of threads, after a crash
and in a replay, which samples them again; what was sampled has the log-probabilities that transformers gives it; a policy gets better."""
import json
import os
import signal
import subprocess
import time

import numpy as np
import torch
import transformers

from harness import CAIRN, cairn, journal, main, workspace

MODEL = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "max_position_embeddings": 64, "tie_word_embeddings": True}


def settings(folder, **changes):
    tree = {"objective": "grpo", "seed": 5, "model": dict(MODEL), "data": {"tokenizer": {"bytes": True}, "cache": os.path.join(folder, "cache")},
            "task": {"name": "arithmetic", "digits": 1, "operands": 2, "operators": "+", "prompt": "{expression}="}, "rewards": [{"name": "number"}],
            "rl": {"num_generations": 4, "max_completion_length": 8, "stop": ["\n"]},
            "optim": {"name": "adamw", "lr": 0.001, "weight_decay": 0.0},
            "train": {"steps": 6, "batch": 16, "micro_batch": 4, "lanes": 2, "threads": 1}, "checkpoints": {"every": 2, "log_spaced": True}}
    for key, value in changes.items():
        node = tree
        *path, last = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
        if value is None:
            node.pop(last, None)
        else:
            node[last] = value
    file = os.path.join(folder, f"run-{abs(hash(json.dumps(tree, sort_keys=True)))}.yaml")
    with open(file, "w") as out:
        json.dump(tree, out)
    return file


def rollouts(run, step):
    with open(os.path.join(run, "rollouts", f"step-{step:08d}.jsonl")) as file:
        return [json.loads(line) for line in file]


def digests(run):
    return [line["digest"] for line in journal(run)]


def test_the_same_bits():
    with workspace() as folder:
        run, other, killed = (os.path.join(folder, name) for name in ("one", "two", "killed"))
        cairn("train", settings(folder), "--run", run, "--json")
        cairn("train", settings(folder, **{"train.threads": 2, "rollout.page_size": 16, "rollout.max_batch": 3}), "--run", other, "--json")
        assert digests(run) == digests(other) and len(set(digests(run))) == 6
        for step in range(1, 7):
            assert rollouts(run, step) == rollouts(other, step)
        done = json.loads(cairn("replay", run, "--from", 0, "--to", 6, "--json").stdout)
        assert done["replayed"] == 6 and done["verified"] and done["first_divergence"] is None, done
        # Killed at any moment, in the middle of sampling too.
        process = subprocess.Popen([CAIRN, "train", settings(folder, **{"train.steps": 12}), "--run", killed], stdout=subprocess.DEVNULL)
        for _ in range(400):
            time.sleep(0.02)
            if os.path.exists(os.path.join(killed, "rollouts", "step-00000003.jsonl")):
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        cairn("resume", killed)
        assert digests(killed)[:6] == digests(run) and len(digests(killed)) == 12
        for step in range(1, 7):
            assert rollouts(run, step) == rollouts(killed, step)


def test_samples_have_the_models_log_probabilities():
    for exact in (False, True):
        with workspace() as folder:
            run = os.path.join(folder, "run")
            cairn("train", settings(folder, **{"rl.temperature": 0.8, "rl.top_k": 40, "rollout.exact": exact}), "--run", run, "--json")
            lines = {line["step"]: line for line in journal(run)}
            for step in (1, 3, 5):
                model = transformers.AutoModelForCausalLM.from_pretrained(os.path.join(run, "checkpoints", f"step-{step - 1:08d}")).float()
                samples = rollouts(run, step)
                assert len(samples) == 16
                for sample in samples:
                    prompt, ids = sample["prompt_ids"], sample["ids"]
                    with torch.no_grad():
                        logits = model(torch.tensor([prompt + ids])).logits.double()[0] / 0.8
                    theirs = [logits.log_softmax(-1)[len(prompt) - 1 + i, token].item() for i, token in enumerate(ids)]
                    assert np.abs(np.array(theirs) - sample["logprobs"]).max() < 5e-5
                    assert bytes(prompt).decode() == sample["prompt"] and len(ids) <= 8
                    assert sample["finish_reason"] == ("stop" if bytes(ids).endswith(b"\n") else "length")
                metrics = lines[step]["metrics"]
                assert metrics["sampling/sampling_logp_difference/max"] <= (0 if exact else 5e-5), metrics
                assert metrics["completions/clipped_ratio"] == np.mean([s["finish_reason"] == "length" for s in samples])
                assert abs(metrics["reward"] - np.mean([s["reward"] for s in samples])) < 1e-6


def loss_of(samples, model, temperature, kind):
    """The policy loss at ratio 1 whose gradient is asked for, written out with autograd."""
    total, tokens = 0, sum(len(s["ids"]) for s in samples)
    for sample in samples:
        prompt, ids = sample["prompt_ids"], sample["ids"]
        logprobs = (model(torch.tensor([prompt + ids])).logits[0] / temperature).log_softmax(-1)
        own = torch.stack([logprobs[len(prompt) - 1 + i, token] for i, token in enumerate(ids)])
        ratio = (own - own.detach()).exp()
        term = -(ratio * sample["advantage"]).sum()
        total = total + term / {"dapo": tokens, "dr_grpo": len(samples) * 8, "grpo": len(ids) * len(samples)}[kind]
    return total


def test_gradients_beside_autograd():
    """One step of plain SGD moves the weights by the gradient that the formula, written out, gives."""
    for kind in ("dapo", "dr_grpo", "grpo"):
        with workspace() as folder:
            run = os.path.join(folder, "run")
            # Digits are likely to be judged apart: the reward asks for few tokens.
            cairn("train", settings(folder, **{"rl.loss_type": kind, "rewards": [{"name": "format", "pattern": "^[a-m]"}], "optim.name": "sgd", "optim.lr": 1.0,
                                               "optim.momentum": 0.0, "optim.nesterov": False, "optim.clip": 0.0, "train.steps": 1}), "--run", run, "--json")
            samples = rollouts(run, 1)
            assert len({s["reward"] for s in samples}) > 1
            for group in range(0, 16, 4):
                rewards = np.array([s["reward"] for s in samples[group:group + 4]])
                theirs = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
                assert np.allclose(theirs, [s["advantage"] for s in samples[group:group + 4]], atol=1e-5)
            before, after = (transformers.AutoModelForCausalLM.from_pretrained(os.path.join(run, "checkpoints", f"step-{n:08d}")).float() for n in (0, 1))
            loss_of(samples, before, 1.0, kind).backward()
            largest = max(p.grad.abs().max().item() for p in before.parameters())
            assert largest > 1e-3
            for (name, p), q in zip(before.named_parameters(), after.parameters()):
                assert (p.detach() - q.detach() - p.grad).abs().max().item() < 2e-5 * max(1, largest), (kind, name)


def test_a_policy_gets_better():
    """From nothing: completions that begin with a letter of the first half are rewarded."""
    with workspace() as folder:
        run = os.path.join(folder, "run")
        cairn("train", settings(folder, **{"rewards": [{"name": "format", "pattern": "^[a-m]"}], "optim.lr": 0.01, "train.steps": 40, "train.batch": 32,
                                           "eval.every": 20, "eval.sequences": 16, "checkpoints.every": 0, "checkpoints.log_spaced": False}), "--run", run, "--json")
        lines = journal(run)
        first, last = (np.mean([line["metrics"]["reward"] for line in part]) for part in (lines[:5], lines[-5:]))
        print(f"      mean reward of the first five steps {first:.2f}, of the last {last:.2f}; greedy {lines[-1]['task']}")
        assert first < 0.3 and last > 0.8 and lines[-1]["task"]["accuracy"] > 0.8


def test_mistakes():
    with workspace() as folder:
        runs = iter(range(100))

        def refused(*words, status=2, **changes):
            done = cairn("train", settings(folder, **changes), "--run", os.path.join(folder, f"no-{next(runs)}"), check=False)
            assert done.returncode == status and all(word in done.stderr for word in words), (done.returncode, done.stderr)
        refused("train.batch", "num_generations", **{"rl.num_generations": 5})
        refused("num_generations: 1", "baseline", **{"rl.num_generations": 1})
        refused("rl.los_type", **{"rl.los_type": "grpo"})
        refused("loss_type", "grp", "dr_grpo", **{"rl.loss_type": "grp"})
        refused("epsilon_high", "cispo", **{"rl.loss_type": "cispo"})
        refused("rl.beta", **{"rl.beta": 0.1})
        refused("rewards", **{"rewards": []})
        refused("task.name", **{"task": {"name": "arithmetik"}})
        refused("data", **{"data.train": [{"text": "foldoc"}]})
        refused("max_completion_length", "context", **{"rl.max_completion_length": 64})
        refused("reward_weights", **{"rl.reward_weights": [1.0, 2.0]})
        refused("found it under", **{"objective": "pretrain", "data.train": [{"text": "foldoc"}]})
        refused("tokenizer", **{"data.tokenizer": None})
        run = os.path.join(folder, "run")
        cairn("train", settings(folder, **{"train.steps": 2}), "--run", run)
        for verb, *more in (("data", "show", f"{run}@1"), ("data", "where", run, "--doc", 0)):
            done = cairn(verb, *more, check=False)
            assert done.returncode == 2 and "cairn:" in done.stderr, (verb, done.returncode, done.stderr)
        assert "epochs" not in cairn("train", settings(folder), "--dry-run").stdout
        # A program as a reward that dies; a prompt that leaves no room.
        refused("exit", status=1, **{"rewards": [{"name": "program", "program": "exit 3", "restarts": 0}]})
        refused("prompt", "context", **{"task.prompt": "x" * 60 + "{expression}"})


if __name__ == "__main__":
    main([test_the_same_bits, test_samples_have_the_models_log_probabilities, test_gradients_beside_autograd, test_a_policy_gets_better, test_mistakes])
