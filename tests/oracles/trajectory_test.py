"""Trajectories: h5py reads what was trained, to the bit; killed, cut, damaged and full disks lose nothing that was sealed."""
import glob
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time

import h5py
import hdf5plugin  # noqa: F401: registers the zstd filter
import numpy as np
import torch
from safetensors.torch import load_file

from harness import CAIRN, cairn, journal, main, run_file, text, workspace

FORMATS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "checkpoints", "FORMATS.md")
exec(re.search(r"```python\n# delta\n(.*?)```", open(FORMATS).read(), re.S).group(1))  # defines read_delta

STEPS = 36
CHECKPOINTS = [0, 5, 10, 15, 20, 25, 30, 35, 36]
STORED = sorted({0, 1, 2, 4, 8, 16, 32} | set(range(5, STEPS + 1, 5)))


def write_text(folder):
    path = os.path.join(folder, "text.txt")
    with open(path, "w") as file:
        file.write(text(documents=40))
    return path


def settings(folder, **changes):
    return run_file(folder, write_text(folder), **{
        "train.steps": STEPS, "checkpoints.every": 5, "checkpoints.at": [0], "trajectory.every": 5, "trajectory.log_spaced": True,
        "trajectory.dtype": "float32", **changes})


def weights(run, step):
    return load_file(os.path.join(run, "checkpoints", f"step-{step:08}", "model.safetensors"))


def join(run):
    return h5py.File(os.path.join(run, "trajectory", "trajectory.h5"), "r")


def bits(array):
    return np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)


def read(file, name, k):
    return read_delta(file, name, k) if "delta" in file else file["weights/" + name][k]


def expect_equals_checkpoints(run, steps, dtype, names=None):
    with join(run) as file:
        stored = list(file["steps"][:])
        assert stored == steps, stored
        compared = 0
        for step in CHECKPOINTS:
            if step not in stored:
                continue
            for name, tensor in weights(run, step).items():
                if names and name not in names:
                    assert "weights/" + name not in file
                    continue
                want = tensor.to(torch.bfloat16).float() if dtype == "bfloat16" else tensor
                assert (bits(read(file, name, stored.index(step))) == bits(want.numpy())).all(), (name, step)
                compared += 1
        assert compared > 10
    assert json.loads(cairn("verify", run, "--json").stdout)["verified"]


def test_h5py_reads_every_codec_to_the_bit():
    with workspace() as folder:
        for codec, dtype in (("plain", "float32"), ("plain", "bfloat16"), ("zstd", "float32"), ("delta", "float32"), ("delta", "bfloat16")):
            run = os.path.join(folder, f"{codec}-{dtype}")
            cairn("train", settings(folder, **{"trajectory.codec": codec, "trajectory.dtype": dtype}), "--run", run)
            expect_equals_checkpoints(run, STORED, dtype)
            with join(run) as file:
                for name in file["delta" if codec == "delta" else "weights"]:
                    assert np.isfinite(read(file, name, len(STORED) - 1)).all(), name  # a source that is lost reads as NaN
        # delta -> plain, by the program; plain needs no filter that HDF5 does not have.
        source, plain = os.path.join(folder, "delta-bfloat16"), os.path.join(folder, "exported")
        made = json.loads(cairn("export", source, "--format", "hdf5", "--out", plain, "--json").stdout)
        assert made["steps"] == len(STORED) and json.loads(cairn("verify", plain, "--json").stdout)["verified"]
        with join(source) as a, h5py.File(os.path.join(plain, "trajectory.h5")) as b:
            assert (a["steps"][:] == b["steps"][:]).all()
            for name in a["delta"]:
                for k in range(len(STORED)):
                    assert (bits(read_delta(a, name, k)) == bits(b["weights/" + name][k])).all(), (name, k)
        with h5py.File(glob.glob(os.path.join(plain, "segment-*.h5"))[0]) as segment:
            set_ = segment["weights/model.norm.weight"]
            assert set_.shuffle and set_.compression == "gzip"


def test_chosen_tensors_and_mistakes():
    with workspace() as folder:
        run = os.path.join(folder, "run")
        cairn("train", settings(folder, **{"trajectory.tensors": ["*.q_proj.weight", "model.norm.weight"]}), "--run", run)
        names = {n for n in weights(run, 36) if n.endswith("q_proj.weight") or n == "model.norm.weight"}
        assert len(names) == 3
        expect_equals_checkpoints(run, STORED, "float32", names)
        for key, value, words in (("trajectory.tensors", ["*.q_porj.weight"], ["trajectory.tensors.0", "q_porj"]),
                                  ("trajectory.codec", "gzip", ["trajectory.codec", "plain, zstd, delta"]),
                                  ("trajectory.dtype", "float16", ["trajectory.dtype", "bfloat16, float32"])):
            done = cairn("train", settings(folder, **{key: value}), "--run", os.path.join(folder, "no"), check=False)
            assert done.returncode == 2 and all(word in done.stderr for word in words), done.stderr
        done = cairn("export", run, "--format", "gguf", "--out", os.path.join(folder, "x"), check=False)
        assert done.returncode == 2 and "gguf" in done.stderr
        done = cairn("export", run, "--format", "hf", "--out", run, check=False)
        assert done.returncode == 1 and "is there already" in done.stderr


def test_export_of_models():
    with workspace() as folder:
        run, hf, series = (os.path.join(folder, name) for name in ("run", "hf", "series"))
        cairn("train", settings(folder, **{"trajectory.every": 0, "trajectory.log_spaced": False}), "--run", run)
        assert not os.path.exists(os.path.join(run, "trajectory"))
        cairn("export", f"{run}@20", "--out", hf)
        exported, stored = load_file(os.path.join(hf, "model.safetensors")), weights(run, 20)
        assert exported.keys() == stored.keys() and all(torch.equal(exported[n], stored[n]) for n in stored)
        assert sorted(os.listdir(hf)) == sorted(n for n in os.listdir(os.path.join(run, "checkpoints", "step-00000020")) if n != "training")
        assert json.loads(cairn("verify", hf, "--json").stdout)["verified"]
        # A run without a trajectory: its stored steps.
        cairn("export", run, "--format", "hdf5", "--out", series)
        with h5py.File(os.path.join(series, "trajectory.h5")) as file:
            assert list(file["steps"][:]) == CHECKPOINTS
            for k, step in enumerate(CHECKPOINTS):
                for name, tensor in weights(run, step).items():
                    assert (bits(file["weights/" + name][k]) == bits(tensor.numpy())).all(), (name, step)


def resume(run, **options):
    return subprocess.Popen([CAIRN, "resume", run], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options)


def wait_for_steps(process, run):
    """Until the run has made a step since now."""
    path = os.path.join(run, "journal.jsonl")

    def state():
        return (os.stat(path).st_ino, os.path.getsize(path)) if os.path.exists(path) else None
    before, start = state(), time.time()
    while state() == before or not state() or state()[1] == 0:
        assert process.poll() is None, process.communicate()[1]
        assert time.time() - start < 60
        time.sleep(0.01)


def test_thirty_kills_lose_nothing_that_was_sealed():
    draw = random.Random(5)
    with workspace() as folder:
        changes = {"train.steps": 4000, "trajectory.every": 1, "checkpoints.every": 7, "checkpoints.keep": {"last": 2}, "checkpoints.at": [],
                   "optim.schedule.name": "constant", "optim.schedule.decay": None, "trajectory.dtype": "bfloat16"}
        file, run = settings(folder, **changes), os.path.join(folder, "run")
        process = subprocess.Popen([CAIRN, "train", file, "--run", run], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wait_for_steps(process, run)
        sealed, before = 0, 0
        for i in range(30):
            if i % 2:  # while it writes
                wait_for_steps(process, run)
                time.sleep(draw.uniform(0, 0.25))
            else:  # while it starts, or later
                time.sleep(draw.uniform(0, 0.8))
            assert process.poll() is None, process.communicate()[1]
            process.send_signal(signal.SIGKILL)
            process.wait()
            if os.path.exists(os.path.join(run, "trajectory", "trajectory.h5")):
                done = cairn("verify", os.path.join(run, "trajectory"), "--json", check=False)
                assert json.loads(done.stdout)["verified"], done.stdout
                with join(run) as trajectory:
                    steps = list(trajectory["steps"][:])
                    name = "weights/model.embed_tokens.weight"
                    assert np.isfinite(trajectory[name][:]).all()
                # Row k is step k: none is missing, and none is ahead of the journal.
                assert steps == list(range(0, len(steps)))
                with open(os.path.join(run, "journal.jsonl")) as lines:
                    known = max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)
                assert not steps or steps[-1] <= known, (steps[-1], known)
                stored = [int(os.path.basename(p)[5:]) for p in glob.glob(os.path.join(run, "checkpoints", "step-*"))]
                # Every step that a committed checkpoint promised is there still.
                assert len(steps) > max(stored, default=-1) >= before, (len(steps), stored, before)
                before, sealed = max(stored, default=0), max(sealed, len(steps))
            process = resume(run)
        wait_for_steps(process, run)
        process.send_signal(signal.SIGTERM)
        err = process.communicate(timeout=60)[1]
        assert process.returncode == 0, err
        assert sealed > 20, sealed
        # Without a kill the same: weights of the last step of both.
        with join(run) as killed:
            last = int(killed["steps"][-1])
        whole = os.path.join(folder, "whole")
        cairn("train", settings(folder, **{**changes, "train.steps": last}), "--run", whole)
        with join(run) as a, join(whole) as b:
            assert list(a["steps"][:]) == list(b["steps"][:])
            for name in b["weights"]:
                assert (bits(a["weights/" + name][:]) == bits(b["weights/" + name][:])).all(), name


def test_a_full_disk_is_named_and_a_resume_completes():
    with workspace() as folder:
        run = os.path.join(folder, "run")
        file = settings(folder, **{"trajectory.every": 0, "trajectory.log_spaced": False, "trajectory.at": [2, 4] + list(range(11, STEPS + 1)),
                                   "checkpoints.every": 10})

        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
        done = subprocess.run([CAIRN, "train", file, "--run", run], capture_output=True, text=True, preexec_fn=limit, restore_signals=False)
        assert done.returncode == 1 and "segment-00001.h5" in done.stderr and "free space" in done.stderr, done.stderr
        assert json.loads(cairn("verify", run, "--json").stdout)["verified"]
        with join(run) as trajectory:
            assert list(trajectory["steps"][:]) == [2, 4]
        assert cairn("resume", run).returncode == 0
        with join(run) as trajectory:
            assert list(trajectory["steps"][:]) == [2, 4, *range(11, STEPS + 1)]
        assert json.loads(cairn("verify", run, "--json").stdout)["verified"]


def test_a_flipped_bit_is_found():
    with workspace() as folder:
        run = os.path.join(folder, "run")
        cairn("train", settings(folder), "--run", run)
        for path in sorted(glob.glob(os.path.join(run, "trajectory", "*"))):
            with open(path, "rb") as file:
                whole = file.read()
            damaged = bytearray(whole)
            damaged[len(whole) // 2] ^= 16
            with open(path, "wb") as file:
                file.write(damaged)
            done = cairn("verify", run, "--json", check=False)
            assert done.returncode == 1 and os.path.basename(path) in json.dumps(json.loads(done.stdout)["fault"]), (path, done.stdout)
            with open(path, "wb") as file:
                file.write(whole)
        assert json.loads(cairn("verify", run, "--json").stdout)["verified"]


def test_a_tensor_over_a_hundred_steps_costs_its_own_bytes():
    with workspace() as folder:
        run = os.path.join(folder, "run")
        cairn("train", settings(folder, **{
            "model.hidden_size": 128, "model.intermediate_size": 128, "model.num_hidden_layers": 1, "model.num_key_value_heads": 4,
            "data.context": 16, "train.steps": 100, "train.batch": 4, "train.micro_batch": 1, "checkpoints.every": 40, "checkpoints.at": [],
            "trajectory.every": 1, "trajectory.log_spaced": False}), "--run", run)
        name = "weights/model.layers.0.self_attn.q_proj.weight"  # 64 KiB a step
        stored = 0
        for path in glob.glob(os.path.join(run, "trajectory", "segment-*.h5")):
            with h5py.File(path) as file:
                chunks = file[name].id
                stored += sum(chunks.get_chunk_info(i).size for i in range(chunks.get_num_chunks()))
        code = f"""
import h5py, sys
def count(): return int(open("/proc/self/io").read().split()[1])
import numpy
f0 = count(); again = count() - f0
start = count()
with h5py.File({os.path.join(run, "trajectory", "trajectory.h5")!r}) as f:
    a = f[{name!r}][:]
print(count() - start - again, a.shape[0], numpy.isfinite(a).all())
"""
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        assert out[1:] == ["100", "True"], out
        assert int(out[0]) <= 1.1 * stored, (int(out[0]), stored)


if __name__ == "__main__":
    main([test_h5py_reads_every_codec_to_the_bit, test_chosen_tensors_and_mistakes, test_export_of_models,
          test_thirty_kills_lose_nothing_that_was_sealed, test_a_full_disk_is_named_and_a_resume_completes, test_a_flipped_bit_is_found,
          test_a_tensor_over_a_hundred_steps_costs_its_own_bytes])
