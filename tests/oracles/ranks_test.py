"""Data parallel: the bits of one rank under every launcher, one checkpoint written by all ranks and read by any number
of them, ranks killed at any moment, a lost rank named."""
# labels: 
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import torch
from safetensors.torch import load_file

from harness import CAIRN, cairn, digests, journal, main, run_file, text, workspace

TORCHRUN = os.path.join(os.path.dirname(sys.executable), "torchrun")


def write_text(folder):
    path = os.path.join(folder, "text.txt")
    with open(path, "w") as file:
        file.write(text())
    return path


def launch(ranks, *arguments, wait=True, env=None):
    command = [TORCHRUN, "--no-python", "--nproc-per-node", str(ranks), "--master-port", str(29600 + os.getpid() % 300), "--", CAIRN, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})})
    if not wait:
        return process
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, f"{ranks} ranks: exit {process.returncode}\n{out}\n{err[-3000:]}"
    return out


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def variables(launcher, rank, ranks, port):
    """What a launcher says to the process of a rank."""
    if launcher == "mpirun":
        return {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_SIZE": ranks, "OMPI_COMM_WORLD_LOCAL_RANK": rank,
                "OMPI_COMM_WORLD_LOCAL_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if launcher == "srun":  # the port follows from the job's number where none is given
        return {"SLURM_PROCID": rank, "SLURM_STEP_NUM_TASKS": ranks, "SLURM_LOCALID": rank, "SLURM_STEP_TASKS_PER_NODE": f"{ranks}",
                "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1", "SLURM_JOB_ID": 20000 * 7 + port - 20000}
    return {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def start(ranks, *arguments, launcher="torchrun"):
    """Ranks that this test starts itself: no agent ends the others when one dies, and nothing of Python is in the way."""
    port = free_port()
    while launcher == "srun" and not 20000 <= port < 40000:
        port = free_port()
    output = tempfile.TemporaryFile("w+")
    processes = []
    for rank in range(ranks):
        env = {**os.environ, "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in variables(launcher, rank, ranks, port).items()}}
        processes.append(subprocess.Popen([CAIRN, *map(str, arguments)], stdout=output, stderr=output, env=env))
    processes[0].output = output
    return processes


def end(processes):
    for process in processes:
        process.wait(timeout=120)
    processes[0].output.seek(0)
    return processes[0].output.read()


def together(ranks, *arguments, launcher="torchrun"):
    processes = start(ranks, *arguments, launcher=launcher)
    said = end(processes)
    assert all(p.returncode == 0 for p in processes), f"{ranks} ranks, {arguments}: exits {[p.returncode for p in processes]}\n{said[-3000:]}"


SETTINGS = {"train.steps": 10, "optim.schedule.decay": 4, "checkpoints.every": 5, "model.dropout": 0.1}


def test_ranks_change_no_bit():
    with workspace() as folder:
        file = run_file(folder, write_text(folder), **SETTINGS)
        one = os.path.join(folder, "one")
        cairn("train", file, "--run", one, "--json")
        for ranks in (2, 4):
            run = os.path.join(folder, f"ranks-{ranks}")
            launch(ranks, "train", file, "--run", run, "--json")
            assert digests(run) == digests(one), ranks
            assert [line["loss"] for line in journal(run)] == [line["loss"] for line in journal(one)]


def test_zero_1_changes_no_bit_and_resumes_on_other_ranks():
    with workspace() as folder:
        path = write_text(folder)
        one = os.path.join(folder, "one")
        cairn("train", run_file(folder, path, **SETTINGS), "--run", one, "--json")
        sharded = os.path.join(folder, "sharded")
        launch(2, "train", run_file(folder, path, **SETTINGS, **{"parallel.zero": 1}), "--run", sharded, "--json")
        assert digests(sharded) == digests(one)
        # Saved by two ranks, resumed by four, then by one: step 5 again, the same end.
        for ranks in (4, 1):
            newest = os.path.join(sharded, "checkpoints", "step-00000010")
            with open(os.path.join(newest, "training", "state.json"), "r+b") as damaged:
                damaged.truncate(10)
            launch(ranks, "resume", sharded, "--json")
            assert digests(sharded) == digests(one), ranks
        assert json.loads(cairn("verify", sharded, "--json").stdout)["verified"]


def step_folder(run, step):
    return os.path.join(run, "checkpoints", f"step-{step:08}")


def listing(folder):
    return sorted(os.path.relpath(os.path.join(at, name), folder) for at, _, names in os.walk(folder) for name in names)


def of_format(folder, stem):
    """What a user without Cairn reads: the lines of FORMATS.md."""
    page = open(os.path.join(os.path.dirname(__file__), "..", "..", "checkpoints", "FORMATS.md")).read()
    (lines,) = re.findall(r"```python\n(# several writers\n.*?)```", page, re.S)
    if not os.path.exists(os.path.join(folder, f"{stem}.safetensors.index.json")):
        return load_file(os.path.join(folder, f"{stem}.safetensors"))
    known = {"folder": folder, "stem": stem}
    exec(lines, known)
    return known["tensors"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].shape == b[k].shape for k in a)


def test_all_ranks_write_one_checkpoint():
    from transformers import AutoModelForCausalLM
    with workspace() as folder:
        path = write_text(folder)
        settings = {**SETTINGS, "optim.ema": 0.9, "checkpoints.keep": {"last": 2}, "checkpoints.async": True}
        one = os.path.join(folder, "one")
        cairn("train", run_file(folder, path, **settings), "--run", one, "--json")
        weights, moments = load_file(os.path.join(step_folder(one, 10), "model.safetensors")), load_file(os.path.join(step_folder(one, 10), "training", "optimizer.safetensors"))
        reads = {(2, 0): [1, 4], (4, 0): [2], (2, 1): [4, 2, 1], (4, 1): [1, 4]}
        for (ranks, zero), readers in reads.items():
            run = os.path.join(folder, f"ranks-{ranks}-zero-{zero}")
            together(ranks, "train", run_file(folder, path, **settings, **{"parallel.zero": zero}), "--run", run, "--json")
            assert digests(run) == digests(one), (ranks, zero)
            folders = sorted(os.listdir(os.path.join(run, "checkpoints")))
            assert folders == ["step-00000005", "step-00000010"], folders
            newest = step_folder(run, 10)
            files = listing(newest)
            writers = [f for f in files if f.endswith(".safetensors")]
            assert len(writers) >= ranks, files
            if zero:
                assert [f"training/optimizer-{k + 1:05}-of-{ranks:05}.safetensors" in files for k in range(ranks)] == [True] * ranks, files
            sizes = [os.path.getsize(os.path.join(newest, f)) for f in writers]
            assert max(sizes) < 1.7 * sum(sizes) / ranks, dict(zip(writers, sizes))
            assert same(of_format(newest, "model"), weights) and same(of_format(os.path.join(newest, "training"), "optimizer"), moments), (ranks, zero)
            model = AutoModelForCausalLM.from_pretrained(newest, dtype="auto")
            loaded = {k: v for k, v in model.state_dict().items() if k in weights}
            assert len(loaded) == len(weights) and same(loaded, weights), (ranks, zero)
            for reader in readers:  # step 5 was written by `ranks`, step 10 is made again
                shutil.rmtree(newest)
                together(reader, "resume", run, "--json")
                assert digests(run) == digests(one), (ranks, zero, reader)
                assert same(of_format(os.path.join(newest, "training"), "optimizer"), moments), (ranks, zero, reader)
            verified = cairn("verify", run, "--json", check=False)
            assert verified.returncode == 0, verified.stdout


def test_ranks_killed_at_any_moment():
    draw = random.Random(5)
    with workspace() as folder:
        path = write_text(folder)
        settings = {**SETTINGS, "train.steps": 120, "checkpoints.every": 2, "checkpoints.keep": {"last": 3}, "parallel.zero": 1}
        one, run = os.path.join(folder, "one"), os.path.join(folder, "run")
        cairn("train", run_file(folder, path, **{**settings, "checkpoints.every": 50}), "--run", one, "--json")
        arguments = ["train", run_file(folder, path, **settings), "--run", run, "--json"]
        kills, reached, survivors = 0, 0, []
        while kills < 10 and reached < 120:
            ranks = draw.choice([2, 2, 4])
            processes = start(ranks, *arguments)
            arguments = ["resume", run, "--json"]
            # From before the first step of this start to some steps after it.
            wanted = reached + draw.randint(-1, 10)
            while all(p.poll() is None for p in processes) and (not os.path.exists(os.path.join(run, "journal.jsonl")) or len(lines(run)) <= wanted):
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 0.05))
            victim = draw.randrange(ranks)
            if processes[victim].poll() is None:
                processes[victim].kill()
                kills += 1
            rest = [p for p in processes if p is not processes[victim]]
            if kills % 3 == 0:  # they see it themselves
                said = end(processes)
                assert all(p.returncode == 1 for p in rest) and f"rank {victim}" in said, (victim, [p.returncode for p in processes], said[-2000:])
            elif victim == 0 and kills % 3 == 1:  # they may go on for a moment beside the next start
                survivors += rest
            else:
                for process in rest:
                    process.kill()
                end(processes)
            reached = lines(run)[-1]["step"] if os.path.exists(os.path.join(run, "journal.jsonl")) and lines(run) else 0
            if reached == 0 and not os.path.exists(os.path.join(run, "run.yaml")):
                shutil.rmtree(run, ignore_errors=True)
                arguments = ["train", run_file(folder, path, **settings), "--run", run, "--json"]
        assert kills >= 8, (kills, reached)
        together(2, "resume", run, "--json")
        assert digests(run) == digests(one)
        for process in survivors:
            process.wait(timeout=60)
        assert cairn("verify", run, "--json", check=False).returncode == 0
        stored = sorted(name for name in os.listdir(os.path.join(run, "checkpoints")) if not name.startswith("."))
        assert stored == [f"step-{s:08}" for s in (116, 118, 120)], stored


def lines(run):
    """The whole lines of a journal that is being written."""
    with open(os.path.join(run, "journal.jsonl")) as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def test_muon_on_several_ranks():
    with workspace() as folder:
        path = write_text(folder)
        one = os.path.join(folder, "one")
        settings = {**SETTINGS, "optim.name": "muon"}
        cairn("train", run_file(folder, path, **settings), "--run", one, "--json")
        for ranks, zero in ((2, 0), (2, 1), (4, 1)):
            run = os.path.join(folder, f"ranks-{ranks}-zero-{zero}")
            together(ranks, "train", run_file(folder, path, **settings, **{"parallel.zero": zero}), "--run", run, "--json")
            assert digests(run) == digests(one), (ranks, zero)
            if not zero:
                continue
            # Matrices are whole on a rank, and on different ranks.
            index = json.load(open(os.path.join(step_folder(run, 10), "training", "optimizer.safetensors.index.json")))
            matrices = {k: v for k, v in index["weight_map"].items() if "momentum_buffer" in k}
            assert len(matrices) == 14 and not any("[" in k for k in matrices), matrices
            assert len(set(index["weight_map"].values())) == ranks and len(set(matrices.values())) >= max(2, ranks - 1), matrices
            shutil.rmtree(step_folder(run, 10))
            together(6 - ranks, "resume", run, "--json")
            assert digests(run) == digests(one), (ranks, "resumed")


def test_launchers():
    with workspace() as folder:
        file = run_file(folder, write_text(folder), **SETTINGS)
        expected = None
        for launcher in ("mpirun", "srun"):
            run = os.path.join(folder, launcher)
            together(2, "train", file, "--run", run, "--json", launcher=launcher)
            assert {line["ranks"] for line in journal(run)} == {2}
            expected = expected or digests(run)
            assert digests(run) == expected and len(expected) == 10, launcher


def test_a_lost_rank_is_named():
    with workspace() as folder:
        run = os.path.join(folder, "run")
        file = run_file(folder, write_text(folder), **{"train.steps": 100000, "optim.schedule.name": "constant", "optim.schedule.decay": None, "checkpoints.every": 0})
        # Two ranks that this test starts itself, so that no agent ends the second one.
        env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29900 + os.getpid() % 90), "OMP_NUM_THREADS": "1"}
        ranks = [subprocess.Popen([CAIRN, "train", file, "--run", run], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                  env={**os.environ, **env, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(2)]
        while not os.path.exists(os.path.join(run, "journal.jsonl")) or len(journal(run)) < 2:
            assert all(p.poll() is None for p in ranks), [p.communicate() for p in ranks]
            time.sleep(0.05)
        ranks[1].send_signal(signal.SIGKILL)
        start = time.time()
        _, err = ranks[0].communicate(timeout=90)
        assert ranks[0].returncode == 1 and "rank 1" in err, (ranks[0].returncode, err)
        assert time.time() - start < 70


def test_lanes_that_ranks_do_not_divide_are_refused():
    with workspace() as folder:
        file = run_file(folder, write_text(folder), **SETTINGS, **{"train.lanes": 2})
        process = launch(4, "train", file, "--run", os.path.join(folder, "run"), wait=False)
        out, err = process.communicate(timeout=120)
        assert process.returncode != 0 and "train.lanes" in err, err[-2000:]


if __name__ == "__main__":
    main([test_ranks_change_no_bit, test_zero_1_changes_no_bit_and_resumes_on_other_ranks, test_all_ranks_write_one_checkpoint, test_ranks_killed_at_any_moment, test_muon_on_several_ranks,
          test_launchers, test_a_lost_rank_is_named,
          test_lanes_that_ranks_do_not_divide_are_refused])
