"""A disk that is full, for every verb that writes: it says which file and why, nothing that was there is lost, and with
space again the same command does what it does on an empty disk. A small file system of the test's own (root alone)."""
import contextlib
import hashlib
import json
import os
import subprocess
import sys

from harness import cairn, digests, main, run_file, text, workspace

FULL = "No space left on device"


@contextlib.contextmanager
def small_disk(folder, kib):
    """A tmpfs; yields its path and a function that gives it another size."""
    path = os.path.join(folder, "disk")
    os.makedirs(path)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", path], check=True)
    try:
        yield path, lambda size: subprocess.run(["mount", "-o", f"remount,size={size}k", path], check=True)
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill(disk, leave_kib=0):
    """Takes what is free, but for so much; returns the file."""
    path = os.path.join(disk, "filler")
    free = os.statvfs(disk)
    with open(path, "wb") as file:
        file.write(b"\0" * max(0, free.f_bavail * free.f_bsize - leave_kib * 1024))
    return path


def contents(folder):
    """Digest of every file, those that a crash may leave (.tmp-) and locks aside."""
    found = {}
    for at, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(at, name)
            if ".tmp-" in path or name.startswith(".") or name == "filler":
                continue
            with open(path, "rb") as file:
                found[os.path.relpath(path, folder)] = hashlib.sha256(file.read()).hexdigest()
    return found


def settings(folder, **changes):
    path = os.path.join(folder, "text.txt")
    if not os.path.exists(path):
        with open(path, "w") as file:
            file.write(text())
    return run_file(folder, path, **{"train.steps": 24, "checkpoints.every": 4, "metrics.tensorboard": False, **changes})


def refused(*arguments, words=()):
    done = cairn(*arguments, check=False)
    assert done.returncode == 1 and FULL in done.stderr and all(word in done.stderr for word in words), (arguments, done.returncode, done.stderr)
    return done


def verified(run):
    assert json.loads(cairn("verify", run, "--json").stdout)["verified"]


def unbroken(folder, **changes):
    run = os.path.join(folder, "unbroken")
    cairn("train", settings(folder, **changes), "--run", run)
    return digests(run)


def test_a_checkpoint_does_not_fit():
    with workspace() as folder:
        expected = unbroken(folder)
        for asynchronous in (True, False):
            with small_disk(folder + ("/a" if asynchronous else "/b"), 1000) as (disk, resize):
                run = os.path.join(disk, "run")
                refused("train", settings(folder, **{"checkpoints.async": asynchronous}), "--run", run, words=["step-000000", "free space"])
                verified(run)
                stored = [name for name in os.listdir(os.path.join(run, "checkpoints")) if name.startswith("step-")]
                assert 1 <= len(stored) < 6, stored
                refused("resume", run)  # as long as nothing changes
                verified(run)
                assert sorted(stored) == sorted(n for n in os.listdir(os.path.join(run, "checkpoints")) if n.startswith("step-"))
                resize(20000)
                cairn("resume", run)
                assert digests(run) == expected
                verified(run)


def test_the_journal_does_not_fit():
    with workspace() as folder, small_disk(folder, 1500) as (disk, _):
        changes = {"train.steps": 400, "checkpoints.every": 0, "checkpoints.at": [0], "checkpoints.at_end": False, "train.batch": 2,
                   "train.micro_batch": 1, "train.lanes": 2, "train.sample": {"every": 5, "prompt": "The"}}
        expected = unbroken(folder, **changes)
        run = os.path.join(disk, "run")
        filler = fill(disk, 400)
        refused("train", settings(folder, **changes), "--run", run, words=[run])
        stopped = len(digests(run))
        assert 50 < stopped < 400, stopped
        verified(run)
        refused("resume", run, words=[run])
        os.remove(filler)
        cairn("resume", run)
        assert digests(run) == expected
        verified(run)


def test_what_is_made_of_a_run():
    with workspace() as folder, small_disk(folder, 12000) as (disk, _):
        run = os.path.join(disk, "run")
        cairn("train", settings(folder, **{"trajectory.every": 4, "checkpoints.every": 8}), "--run", run)
        given = os.path.join(folder, "text.txt")
        page = os.path.join(run, "report.html")
        cairn("report", run)
        out = lambda name: os.path.join(disk, name)
        for arguments, words in [
            (["replay", run, "--probe", "all", "--every", 8], ["probes"]),
            (["analyze", run], ["analysis"]),
            (["report", run], ["report.html"]),
            (["export", f"{run}@8", "--out", out("exported")], ["exported"]),
            (["export", run, "--format", "hdf5", "--out", out("plain.h5")], ["plain"]),
            (["merge", f"{run}@stored", "--out", out("merged")], ["merged"]),
            (["fork", f"{run}@8", "--run", out("forked")], ["forked"]),
            (["fork", f"{run}@11", "--run", out("rebuilt")], []),
            (["data", "prepare", given, "--tokenizer", os.path.join(run, "checkpoints", "step-00000008"), "--out", out("shards")], ["shards"]),
            (["tokenizer", "train", given, "--vocab-size", 300, "--out", out("tokenizer")], ["tokenizer"]),
        ]:
            filler = fill(disk)
            before = contents(disk)
            refused(*arguments, words=words)
            after = contents(disk)
            assert {k: after.get(k) for k in before} == before, arguments
            new = [name for name in set(after) - set(before) if "/cache/" not in name]  # a cache passes over what is torn
            assert len(new) <= 1, (arguments, new)
            os.remove(filler)
            verified(run)
            cairn(*arguments)
            verified(run)
        assert os.path.getsize(page) > 1e6
        # A state that has to be rebuilt is kept in the run's cache, or not used at all.
        filler = fill(disk)
        refused("eval", f"{run}@13", "--text", given, "--json", words=["cache"])
        os.remove(filler)
        assert json.loads(cairn("eval", f"{run}@13", "--text", given, "--json").stdout)["nll"] > 0
        verified(run)


if __name__ == "__main__":
    if os.geteuid() != 0:
        print("skipped: only root may mount a small file system")
        sys.exit(77)
    main([test_a_checkpoint_does_not_fit, test_the_journal_does_not_fit, test_what_is_made_of_a_run])
