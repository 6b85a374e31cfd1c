"""A run as a user sees it: train, resume after any crash, read from Python, use from the command line."""
# labels: 
import json
import os
import random
import shutil
import signal
import subprocess
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness import CAIRN, cairn, digests, journal, main, run_file, text, workspace


def write_text(folder):
    path = os.path.join(folder, "text.txt")
    with open(path, "w") as file:
        file.write(text())
    return path


def train(folder, name="run", **changes):
    run = os.path.join(folder, name)
    cairn("train", run_file(folder, write_text(folder), **changes), "--run", run, "--json")
    return run


def test_journal_and_layout():
    with workspace() as folder:
        run = train(folder)
        lines = journal(run)
        assert [line["step"] for line in lines] == list(range(1, 41))
        assert all({"loss", "digest", "tokens", "grad_norm", "lr", "batch", "seconds"} <= line.keys() for line in lines)
        assert lines[-1]["loss"] < lines[0]["loss"] - 0.5, (lines[0]["loss"], lines[-1]["loss"])
        log = json.loads(cairn("log", run, "--json").stdout)
        assert log["steps"] == 40 and [c["step"] for c in log["checkpoints"]] == [5, 10, 15, 20, 25, 30, 35, 40], log
        assert all(c["digest"] == digests(run)[c["step"]] for c in log["checkpoints"])
        for name in ("run.yaml", "build.json", "tensorboard"):
            assert os.path.exists(os.path.join(run, name)), name
        assert json.loads(cairn("verify", run, "--json").stdout)["verified"]


def test_run_yaml_gives_the_same_run():
    with workspace() as folder:
        run = train(folder)
        again = os.path.join(folder, "again")
        cairn("train", os.path.join(run, "run.yaml"), "--run", again, "--json")
        assert digests(run) == digests(again)


def test_threads_change_no_bit():
    with workspace() as folder:
        runs = [train(folder, f"threads-{n}", **{"train.threads": n, "train.steps": 12, "model.dropout": 0.1}) for n in (1, 2, 4)]
        assert digests(runs[0]) == digests(runs[1]) == digests(runs[2])


def test_resume_after_sigkill():
    """Killed at 30 random moments, saving included, and resumed each time: the digests of a run never stopped."""
    with workspace() as folder:
        changes = {"train.steps": 120, "checkpoints.every": 3, "optim.ema": 0.99, "model.dropout": 0.1, "checkpoints.keep": {"last": 3}}
        whole = train(folder, "whole", **changes)
        expected = digests(whole)
        seconds = sum(line["seconds"] for line in journal(whole))
        broken = os.path.join(folder, "broken")
        file = run_file(folder, write_text(folder), **changes)
        draw = random.Random(1)
        kills = 0
        for attempt in range(200):
            started = os.path.exists(os.path.join(broken, "run.yaml"))
            command = [CAIRN, "resume", broken, "--json"] if started else [CAIRN, "train", file, "--run", broken, "--json"]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            # Longer lives with every attempt, so that the run gets through; the first ones die while opening.
            delay = draw.uniform(0.05, 0.4 + 0.9 * seconds / 12 + 0.02 * attempt)
            try:
                process.wait(timeout=delay if kills < 30 else 300)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
                continue
            assert process.returncode == 0, process.stderr.read().decode()
            if kills >= 30:
                break
            shutil.rmtree(broken)  # done before it was killed often enough: once more
        assert kills >= 30, kills
        assert digests(broken) == expected
        assert json.loads(cairn("verify", broken, "--json").stdout)["verified"]


def test_sigterm_commits_and_exits_0():
    with workspace() as folder:
        run = os.path.join(folder, "run")
        file = run_file(folder, write_text(folder), **{"train.steps": 100000, "checkpoints.every": 0, "optim.schedule.name": "constant", "optim.schedule.decay": None})
        process = subprocess.Popen([CAIRN, "train", file, "--run", run, "--json"], stdout=subprocess.PIPE)
        while not os.path.exists(os.path.join(run, "journal.jsonl")) or len(journal(run)) < 3:
            time.sleep(0.05)
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
        report = json.loads(out)
        assert process.returncode == 0 and report["stopped_by"] == "signal", report
        stored = [c["step"] for c in json.loads(cairn("log", run, "--json").stdout)["checkpoints"]]
        assert stored[-1] == report["step"] and len(stored) == 2, stored


def test_transformers_loads_a_checkpoint():
    with workspace() as folder:
        run = train(folder)
        checkpoint = os.path.join(run, "checkpoints", "step-00000040")
        model = AutoModelForCausalLM.from_pretrained(checkpoint).float().eval()
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        ids = [tokenizer("The people said that it was")["input_ids"], tokenizer("in the number")["input_ids"]]
        given, got = os.path.join(folder, "ids.jsonl"), os.path.join(folder, "logprobs.jsonl")
        with open(given, "w") as out:
            out.write("".join(json.dumps(i) + "\n" for i in ids))
        cairn("eval", run + "@40", "--ids", given, "--logprobs", got)
        for line, i in zip(open(got), ids):
            with torch.no_grad():
                logprobs = model(torch.tensor([i])).logits[0].log_softmax(-1)
            expected = torch.stack([logprobs[t - 1, i[t]] for t in range(1, len(i))])
            assert torch.allclose(torch.tensor(json.loads(line)), expected, atol=2e-5), (json.loads(line), expected)
        # Greedy text, token for token.
        reply = json.loads(cairn("generate", run, "--prompt", "The ", "--max-tokens", 20, "--temperature", 0, "--json").stdout)
        prompt = tokenizer("The ", return_tensors="pt")["input_ids"]
        greedy = model.generate(prompt, max_new_tokens=20, do_sample=False)[0, prompt.shape[1]:].tolist()
        assert reply["ids"] == greedy[:len(reply["ids"])] and len(reply["logprobs"]) == len(reply["ids"]), (reply, greedy)


def test_eval_contract():
    with workspace() as folder:
        run = train(folder)
        out = json.loads(cairn("eval", run, "--text", os.path.join(folder, "text.txt"), "--json").stdout)
        assert set(out) == {"tokens", "nll", "bits_per_byte"}, out
        # Bytes are tokens here, but for the marks between documents.
        assert abs(out["bits_per_byte"] - out["nll"] / 0.6931471805599453) < 0.1 * out["bits_per_byte"], out
        assert out["nll"] < 4


def damage(kind, path):
    if kind == "corrupted":
        with open(path, "r+b") as file:
            file.seek(os.path.getsize(path) // 2)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 1]))
    elif kind == "truncated":
        os.truncate(path, os.path.getsize(path) - 5)
    elif kind == "missing":
        os.remove(path)


def test_damaged_checkpoints_are_named_and_passed_over():
    with workspace() as folder:
        run = train(folder)
        expected = digests(run)
        for kind in ("corrupted", "truncated", "missing", "swapped"):
            copy = os.path.join(folder, kind)
            shutil.copytree(run, copy)
            newest = os.path.join(copy, "checkpoints", "step-00000040")
            if kind == "swapped":
                shutil.copy(os.path.join(copy, "checkpoints", "step-00000035", "model.safetensors"), os.path.join(newest, "model.safetensors"))
            else:
                damage(kind, os.path.join(newest, "training", "optimizer.safetensors"))
            checked = cairn("verify", copy, check=False)
            assert checked.returncode == 1 and "step-00000040" in checked.stdout, (kind, checked.stdout)
            done = cairn("resume", copy)
            assert "step 40 is damaged" in done.stdout and "going back to step 35" in done.stdout, (kind, done.stdout)
            assert digests(copy) == expected, kind


def test_mistakes_end_with_status_2():
    with workspace() as folder:
        path = write_text(folder)
        cases = [
            ({"optim.learning_rate": 1}, "learning_rate", "did you mean"),
            ({"optim.lr": -0.1}, "optim.lr", "-0.1"),
            ({"model.num_key_value_heads": 3}, "num_key_value_heads", "divisor"),
            ({"data.context": 128}, "max_position_embeddings", "64"),
            ({"model.model_type": "lama"}, "model_type", "lama"),
        ]
        for changes, *expected in cases:
            done = cairn("train", run_file(folder, path, **changes), "--run", os.path.join(folder, "no"), check=False)
            assert done.returncode == 2, (changes, done.returncode, done.stderr)
            assert all(part in done.stderr for part in expected), (changes, done.stderr)
        run = train(folder)
        again = cairn("train", run_file(folder, path), "--run", run, check=False)
        assert again.returncode == 1 and "resume" in again.stderr, again.stderr
        assert cairn("eval", run + "@41", "--text", path, check=False).returncode == 1
        assert cairn("generate", os.path.join(folder, "none"), "--prompt", "x", check=False).returncode == 1
        assert cairn("frobnicate", check=False).returncode == 2


def test_stages_change_data_and_rate():
    with workspace() as folder:
        path = write_text(folder)
        other = os.path.join(folder, "other.txt")
        with open(other, "w") as file:
            file.write(text(seed=5))
        stages = [{"name": "first", "steps": 6}, {"name": "second", "steps": 6, "data": {"train": [{"text": other}], "context": 16}, "optim": {"lr": 0.001, "schedule": {"name": "constant", "decay": None, "warmup": 0}}}]
        run = os.path.join(folder, "run")
        cairn("train", run_file(folder, path, **{"stages": stages, "train.steps": None, "optim.schedule.name": "constant", "optim.schedule.decay": None}), "--run", run, "--json")
        lines = journal(run)
        assert [line["batch"]["context"] for line in lines] == [32] * 6 + [16] * 6
        assert lines[-1]["lr"] == 0.001 and lines[5]["lr"] == 0.003
        shown = json.loads(cairn("data", "show", run + "@9", "--json").stdout)
        assert shown["rows"] == 8 and shown["sequences"][0]["source"] == "other", shown["sequences"][0]


if __name__ == "__main__":
    main([test_journal_and_layout, test_run_yaml_gives_the_same_run, test_threads_change_no_bit, test_resume_after_sigkill, test_sigterm_commits_and_exits_0,
          test_transformers_loads_a_checkpoint, test_eval_contract, test_damaged_checkpoints_are_named_and_passed_over, test_mistakes_end_with_status_2,
          test_stages_change_data_and_rate])
