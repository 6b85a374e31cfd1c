"""Data parallel through torchrun: the bits of one rank, one checkpoint written by all, a lost rank named."""
# labels: 
import json
import os
import signal
import subprocess
import sys
import time

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
            with open(os.path.join(newest, "model.safetensors"), "r+b") as damaged:
                damaged.truncate(100)
            launch(ranks, "resume", sharded, "--json")
            assert digests(sharded) == digests(one), ranks
        assert json.loads(cairn("verify", sharded, "--json").stdout)["ok"]


def test_muon_on_two_ranks():
    with workspace() as folder:
        file = run_file(folder, write_text(folder), **SETTINGS, **{"optim.name": "muon"})
        one, two = os.path.join(folder, "one"), os.path.join(folder, "two")
        cairn("train", file, "--run", one, "--json")
        launch(2, "train", file, "--run", two, "--json")
        assert digests(one) == digests(two)


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
    main([test_ranks_change_no_bit, test_zero_1_changes_no_bit_and_resumes_on_other_ranks, test_muon_on_two_ranks, test_a_lost_rank_is_named,
          test_lanes_that_ranks_do_not_divide_are_refused])
