"""Dense, warm-up and sparse in one run: what learns in each stage, and that the steps are the same on one rank and two, after a
crash, in a replay and in a fork."""
import json
import os
import signal
import subprocess
import sys
import time

from safetensors.torch import load_file

from harness import CAIRN, cairn, digests, journal, main, run_file, text, workspace

TORCHRUN = os.path.join(os.path.dirname(sys.executable), "torchrun")
MODEL = {"model.model_type": "llama_dsa", "model.index_n_heads": 4, "model.index_head_dim": 16, "model.index_topk": 6,
         "data.context": 32, "data.mask_documents": True}
STAGES = [{"name": "dense", "steps": 4, "indexer": {"mode": "dense"}},
          {"name": "warmup", "steps": 4, "train": "indexer", "indexer": {"mode": "warmup", "lr": 0.002}},
          {"name": "sparse", "steps": 6, "index_topk": 5, "indexer": {"mode": "sparse", "sinks": 1, "window": 2}}]


def write_run(folder, stages=STAGES, **changes):
    path = os.path.join(folder, "text.txt")
    with open(path, "w") as file:
        file.write(text())
    file = run_file(folder, path, **{"checkpoints.every": 2, "checkpoints.async": False, "optim.ema": 0.9, "train.lanes": 2, "optim.schedule.name": "constant", "optim.schedule.warmup": 0, "optim.schedule.decay": None, **MODEL, **changes})
    tree = json.load(open(file))
    tree["train"].pop("steps", None)
    tree["stages"] = stages
    with open(file, "w") as out:
        json.dump(tree, out)
    return file


def train(folder, name="run", **changes):
    run = os.path.join(folder, name)
    cairn("train", write_run(folder, **changes), "--run", run, "--json")
    return run


def weights(run, step):
    return load_file(os.path.join(run, "checkpoints", f"step-{step:08}", "model.safetensors"))


def moved(run, a, b):
    one, two = weights(run, a), weights(run, b)
    return {".indexer." in name for name in one if not one[name].equal(two[name])}


def test_what_learns_in_each_stage():
    with workspace() as folder:
        run = train(folder)
        assert moved(run, 2, 4) == {False} and moved(run, 4, 8) == {True} and moved(run, 8, 14) == {False, True}
        lines = {line["step"]: line for line in journal(run)}
        assert "indexer_grad_norm" not in lines[4] and lines[8]["grad_norm"] == 0 and lines[8]["indexer_grad_norm"] > 0
        assert lines[8]["indexer_lr"] > 0 and lines[9]["grad_norm"] > 0 and lines[9]["indexer_grad_norm"] > 0
        # What the chosen keys hold of all attention is known where all of it is at hand.
        assert {"index_kl", "index_recall", "index_mass"} <= set(lines[8]["layers"]) and "index_kl" in lines[14]["layers"], lines[14]
        for step in (8, 14):
            assert len(lines[step]["layers"]["index_kl"]) == 2 and all(value >= 0 for value in lines[step]["layers"]["index_kl"].values())
        # The indexer gets better at what it learns.
        kl = [sum(lines[step]["layers"]["index_kl"].values()) for step in (5, 8)]
        assert kl[1] < kl[0], kl


def test_bits_through_all_stages():
    with workspace() as folder:
        run = train(folder)
        expected = digests(run)
        out = json.loads(cairn("replay", run, "--json").stdout)
        assert out["verified"] and out["replayed"] == 14, out
        for jobs in (["--threads", "1"], ["--from", "7", "--to", "10"]):
            assert json.loads(cairn("replay", run, *jobs, "--json").stdout)["verified"]
        # RUN@9 is rebuilt; what goes on from there in another run is the same.
        child = os.path.join(folder, "child")
        cairn("fork", run + "@9", "--run", child)
        cairn("resume", child)
        assert digests(child) == expected
        two = os.path.join(folder, "two")
        subprocess.run([TORCHRUN, "--no-python", "--nproc-per-node", "2", "--", CAIRN, "train", write_run(folder), "--run", two, "--json"],
                       check=True, capture_output=True)
        assert digests(two) == expected


def test_the_dense_stage_is_the_dense_model():
    """An indexer that stands by changes neither a loss nor the validation, whatever keys it would choose."""
    with workspace() as folder:
        stage = [{"name": "only", "steps": 4}]
        beside = train(folder, "beside", stages=[{**stage[0], "indexer": {"mode": "dense"}}])
        plain = train(folder, "plain", stages=stage, **{key: None for key in MODEL if "index" in key}, **{"model.model_type": "llama"})
        sparse = train(folder, "sparse", stages=stage)
        seen = [[(line["loss"], line.get("eval")) for line in journal(run)] for run in (beside, plain, sparse)]
        assert seen[0] == seen[1] and seen[0][-1][1] and seen[0][-1] != seen[2][-1], seen


def test_killed_in_each_stage():
    with workspace() as folder:
        expected, file = digests(train(folder)), write_run(folder)
        for after in (2, 6, 11):
            run = os.path.join(folder, f"killed-{after}")
            process = subprocess.Popen([CAIRN, "train", file, "--run", run, "--json"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            path = os.path.join(run, "journal.jsonl")
            while process.poll() is None and not (os.path.exists(path) and open(path).read().count("\n") >= after):
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            process.wait()
            cairn("resume", run)
            assert digests(run) == expected, after


def test_stages_that_make_no_sense():
    with workspace() as folder:
        for stage, words in [({"indexer": {"mode": "dense"}, "train": "indexer"}, ["stages.0", "train", "nothing"]),
                             ({"index_topk": 0}, ["stages.0.index_topk", "at least 1"]),
                             ({"indexer": {"mode": "warmup"}, "train": "model"}, ["stages.0.train", "warmup"]),
                             ({"index_topk": 5, "indexer": {"sinks": 4, "window": 2}}, ["stages.0.indexer", "4 sinks", "window of 2", "topk (5)"]),
                             ({"indexer": {"mode": "sparce"}}, ["stages.0.indexer.mode", "sparse"]),
                             ({"indexer": {"top": 3}}, ["stages.0.indexer.top"])]:
            file = write_run(folder, [{"name": "only", "steps": 2, **stage}])
            for more in ([], ["--dry-run"]):
                done = cairn("train", file, "--run", os.path.join(folder, "run"), *more, check=False)
                assert done.returncode == 2 and all(word in done.stderr for word in words), (stage, done.stderr)
        file = write_run(folder, **{"model.model_type": "llama", "model.index_topk": None})
        tree = json.load(open(file))
        tree["model"] = {key: value for key, value in tree["model"].items() if not key.startswith("index_")}
        json.dump(tree, open(file, "w"))
        done = cairn("train", file, "--run", os.path.join(folder, "run"), check=False)
        assert done.returncode == 2 and "indexer" in done.stderr and "none" in done.stderr, done.stderr


if __name__ == "__main__":
    main([test_what_learns_in_each_stage, test_bits_through_all_stages, test_the_dense_stage_is_the_dense_model, test_killed_in_each_stage, test_stages_that_make_no_sense])
