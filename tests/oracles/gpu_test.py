"""A GPU: refused with the reason where there is none; where there is one, trained on, resumed, and compared with the CPU.

The tests that need a GPU have never run so far. On a machine without one they say so, and what the GPU would compute is
computed on the CPU through the same operators (train.kernels: aten).
"""
# labels: 
import json
import os
import subprocess
import sys

import torch

from harness import CAIRN, cairn, digests, journal, main, run_file, text, workspace

GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
TORCHRUN = os.path.join(os.path.dirname(sys.executable), "torchrun")
SETTINGS = {"train.steps": 20, "optim.schedule.decay": 8, "checkpoints.every": 10, "eval.every": 10, "train.device": "cpu"}


def needs(gpus):
    def mark(test):
        test.gpus = gpus
        return test

    return mark


def train(folder, name, ranks=1, **changes):
    path = os.path.join(folder, "text.txt")
    with open(path, "w") as file:
        file.write(text())
    run = os.path.join(folder, name)
    arguments = ["train", run_file(folder, path, **{**SETTINGS, **changes}), "--run", run, "--json"]
    if ranks == 1:
        cairn(*arguments)
    else:
        port = str(29600 + os.getpid() % 300)
        command = [TORCHRUN, "--no-python", "--nproc-per-node", str(ranks), "--master-port", port, "--", CAIRN, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    return run


def losses(run):
    return [line["loss"] for line in journal(run)]


def close(a, b, tolerance):
    worst = max(abs(x - y) / abs(y) for x, y in zip(losses(a), losses(b), strict=True))
    assert worst < tolerance, (worst, losses(a), losses(b))


def test_without_a_gpu_cuda_is_refused_with_the_reason():
    with workspace() as folder:
        path = os.path.join(folder, "text.txt")
        with open(path, "w") as file:
            file.write(text())
        done = cairn("train", run_file(folder, path, **{**SETTINGS, "train.device": "cuda"}), "--run", os.path.join(folder, "run"), check=False)
        assert done.returncode == 2, (done.returncode, done.stderr)
        assert "train.device" in done.stderr and "cuda: " in done.stderr and "choose cpu or auto" in done.stderr, done.stderr
        assert not os.path.exists(os.path.join(folder, "run", "journal.jsonl"))
        # auto goes on without a word about a GPU.
        auto = train(folder, "auto", **{"train.device": "auto", "train.steps": 12})
        cpu = train(folder, "cpu", **{"train.device": "cpu", "train.steps": 12})
        assert digests(auto) == digests(cpu)
        for verb in (["eval", auto, "--text", path], ["generate", auto, "--prompt", "The", "--max-tokens", "3"]):
            done = cairn(*verb, "--device", "cuda", check=False)
            assert done.returncode == 2 and "cuda: " in done.stderr, (verb, done.returncode, done.stderr)


def test_what_a_gpu_computes_computed_on_the_cpu():
    """LibTorch's operators alone: the losses of the vectorised kernels, and the same bits every time."""
    with workspace() as folder:
        for changes in ({}, {"model.dropout": 0.1, "optim.z_loss": 1e-4, "train.activation_checkpointing": True}):
            number = len(os.listdir(folder))
            fast = train(folder, f"fast-{number}", **changes)
            aten = train(folder, f"aten-{number}", **{**changes, "train.kernels": "aten"})
            close(aten, fast, 1e-4)
            assert digests(aten) != digests(fast)
            assert digests(train(folder, f"again-{number}", **{**changes, "train.kernels": "aten"})) == digests(aten)
            last = journal(aten)[-1]["eval"], journal(fast)[-1]["eval"]
            for name in last[0]:
                assert abs(last[0][name]["nll"] - last[1][name]["nll"]) < 1e-3, last


@needs(1)
def test_gpu_follows_the_cpu():
    with workspace() as folder:
        for precision, tolerance in (("float32", 1e-3), ("bf16-mixed", 2e-2), ("bf16", 5e-2)):
            for name in ("adamw", "muon", "sgd"):
                changes = {"train.precision": precision, "optim.name": name}
                cpu = train(folder, f"cpu-{name}-{precision}", **changes)
                gpu = train(folder, f"gpu-{name}-{precision}", **{**changes, "train.device": "cuda"})
                # Muon's iteration is bfloat16 on GPUs.
                close(gpu, cpu, max(tolerance, 2e-2) if name == "muon" else tolerance)


@needs(1)
def test_gpu_gives_the_same_bits_every_time_and_after_a_resume():
    with workspace() as folder:
        changes = {"train.device": "cuda", "model.dropout": 0.1, "optim.ema": 0.99}
        one, two = train(folder, "one", **changes), train(folder, "two", **changes)
        assert digests(one) == digests(two)
        expected = digests(one)
        with open(os.path.join(one, "checkpoints", "step-00000020", "model.safetensors"), "r+b") as damaged:
            damaged.truncate(100)
        cairn("resume", one, "--json")
        assert digests(one) == expected
        assert json.loads(cairn("verify", one, "--json").stdout)["verified"]


@needs(1)
def test_gpu_kernels_agree_with_libtorch():
    with workspace() as folder:
        for model in ("llama", "qwen3", "gpt2"):
            changes = {"train.device": "cuda", "model.model_type": model}
            if model == "gpt2":
                changes |= {"model.num_key_value_heads": 4}
            close(train(folder, f"fast-{model}", **changes), train(folder, f"aten-{model}", **{**changes, "train.kernels": "aten"}), 1e-3)


@needs(1)
def test_gpu_evaluates_and_generates_as_the_cpu():
    with workspace() as folder:
        run = train(folder, "run")
        path = os.path.join(folder, "text.txt")
        nll = [json.loads(cairn("eval", run, "--text", path, "--device", device, "--json").stdout)["nll"] for device in ("cpu", "cuda")]
        assert abs(nll[0] - nll[1]) < 1e-4, nll
        said = [json.loads(cairn("generate", run, "--prompt", "The", "--temperature", "0", "--max-tokens", "20", "--device", device, "--json").stdout)["ids"] for device in ("cpu", "cuda")]
        assert said[0] == said[1], said


@needs(2)
def test_two_gpus_have_the_bits_of_one():
    with workspace() as folder:
        changes = {"train.device": "cuda", "model.dropout": 0.1}
        one = train(folder, "one", **changes)
        for zero in (0, 1):
            two = train(folder, f"two-{zero}", ranks=2, **{**changes, "parallel.zero": zero})
            assert digests(two) == digests(one), zero


def can_run(test):
    if test is test_without_a_gpu_cuda_is_refused_with_the_reason and GPUS:
        print(f"skip  {test.__name__}: there is a GPU", flush=True)
        return False
    wanted = getattr(test, "gpus", 0)
    if GPUS < wanted:
        print(f"skip  {test.__name__}: {GPUS} GPUs on this machine, {wanted} needed", flush=True)
    return GPUS >= wanted


if __name__ == "__main__":
    main([test for name, test in list(globals().items()) if name.startswith("test_") and can_run(test)])
