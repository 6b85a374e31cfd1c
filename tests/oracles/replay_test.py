"""Any step of a run as a user asks for it: replayed and verified, addressed, forked; faults on the disk found and located."""
# labels: 
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import torch
from safetensors.torch import load_file, save_file

from harness import CAIRN, cairn, digests, journal, main, run_file, text, workspace

TORCHRUN = os.path.join(os.path.dirname(sys.executable), "torchrun")
KINDS = {
    "adamw": {"optim.ema": 0.98},
    "dropout": {"optim.ema": 0.98, "model.dropout": 0.1},
    "muon": {"optim.ema": 0.98, "optim.name": "muon", "optim.lr": 0.01, "model.dropout": 0.1},
    "bf16": {"train.precision": "bf16-mixed"},
}
CONSTANT = {"optim.schedule.name": "constant", "optim.schedule.decay": None}


def write_text(folder):
    path = os.path.join(folder, "text.txt")
    if not os.path.exists(path):
        with open(path, "w") as file:
            file.write(text())
    return path


def train(folder, name="run", **changes):
    run = os.path.join(folder, name)
    cairn("train", run_file(folder, write_text(folder), **changes), "--run", run, "--json")
    return run


def replay(run, *arguments, status=0):
    done = cairn("replay", run, *arguments, "--json", check=False)
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def stored(run):
    return sorted(int(name[5:]) for name in os.listdir(os.path.join(run, "checkpoints")) if name.startswith("step-"))


def step_folder(run, step, where="checkpoints"):
    return os.path.join(run, where, f"step-{step:08}")


def refused(*arguments, status=1, says=()):
    done = cairn(*arguments, check=False)
    assert done.returncode == status, (arguments, done.returncode, done.stdout, done.stderr)
    for part in says:
        assert part in done.stderr, (arguments, part, done.stderr)
    return done.stderr


CRC_TABLE = []
for byte in range(256):
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    CRC_TABLE.append(byte)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def rewrite_journal(run, change):
    """Lines changed by `change(line)`, each with a right checksum."""
    lines = []
    for line in journal(run):
        change(line)
        line.pop("crc")
        body = json.dumps(line, separators=(",", ":"))[:-1]
        lines.append(f'{body},"crc":"{crc32c(body.encode()):08x}"}}\n')
    with open(os.path.join(run, "journal.jsonl"), "w") as file:
        file.write("".join(lines))


def flip(path, at=None, keep_time=False):
    times = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2 if at is None else at)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    if keep_time:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_replay_from_every_checkpoint():
    """200 steps with and without dropout, AdamW and Muon, a moving average, bfloat16: every start verifies all that follows."""
    with workspace() as folder:
        for name, changes in KINDS.items():
            run = train(folder, name, **changes, **{"train.steps": 200, "checkpoints.every": 40, "train.threads": 2})
            before = open(os.path.join(run, "journal.jsonl")).read()
            for start in [0, *stored(run)]:
                report = replay(run, "--from", start)
                assert report["verified"] and report["first_divergence"] is None and report["replayed"] == 200 - start, (name, report)
                assert report["compared"] == 200 - start and report["checkpoints"] == (200 - start) // 40, (name, report)
            measured = replay(run, "--probe", "all", "--every", 20, "--text", write_text(folder))
            assert measured["verified"] and measured["compared"] == 200 and measured["checkpoints"] >= 5, (name, measured)
            assert sum(probe["values"] > 0 for probe in measured["probes"]) >= 9, (name, measured["probes"])
            assert open(os.path.join(run, "journal.jsonl")).read() == before


def test_part_of_a_run_and_several_processes():
    with workspace() as folder:
        run = train(folder, **{"train.steps": 60, "checkpoints.every": 20, "model.dropout": 0.1})
        part = replay(run, "--from", 27, "--to", 51)
        assert part["replayed"] == 24 and part["start"] == 20 and part["verified"], part
        shared = replay(run, "--jobs", 2, "--threads", 2)
        assert shared["jobs"] == 2 and shared["replayed"] == shared["compared"] == 60 and shared["verified"], shared
        flip(os.path.join(step_folder(run, 40), "model.safetensors"))
        shared = replay(run, "--jobs", 3, status=1)
        assert shared["first_divergence"] == 40 and [f["step"] for f in shared["faults"]] == [40], shared
        said = cairn("replay", run, "--from", 20, "--to", 39).stdout
        assert "19 steps, about 1s from step 20" in said and "as recorded" in said, said
        refused("replay", run, "--from", 10, "--to", 61, status=2, says=["0 to 60"])


def test_probes_change_no_bit():
    with workspace() as folder:
        run = train(folder, **{"train.steps": 24, "checkpoints.every": 12, "model.dropout": 0.1, "optim.ema": 0.9})
        report = replay(run, "--probe", "all", "--every", 8, "--text", write_text(folder))
        assert report["verified"] and report["compared"] == 24, report
        # A dense model has neither experts to load nor an indexer.
        absent = {"expert_load", "index_overlap", "index_recall"}
        assert all((probe["values"] > 0) == (probe["metric"] not in absent) for probe in report["probes"]), report["probes"]
        assert len(report["probes"]) >= 9
        names = os.listdir(os.path.join(run, "probes"))
        assert any(name.endswith(".h5") for name in names) and any(name.endswith(".jsonl") for name in names), names


def test_digests_every_so_many_steps():
    with workspace() as folder:
        often = train(folder, "often", **{"train.steps": 23, "checkpoints.every": 10, **CONSTANT})
        run = train(folder, **{"train.steps": 23, "checkpoints.every": 10, "checkpoints.digest_every": 4, **CONSTANT})
        known = digests(often)
        found = [line["digest"] for line in journal(run)]
        assert [n for n, digest in enumerate(found, 1) if digest] == [4, 8, 10, 12, 16, 20, 23]
        assert all(digest in (None, known[n]) for n, digest in enumerate(found, 1) if digest), found
        assert json.loads(cairn("log", run, "--json").stdout)["unverified"] == []
        out = replay(run, "--from", 2, "--to", 23)
        assert out["verified"] and out["replayed"] == 21, out
        # A step without a digest: the next one speaks for it.
        (value, said), (expected, _) = (nll(f"{r}@5", "--text", write_text(folder)) for r in (run, often))
        assert "8 steps" in said and "up to step 8" in said, said
        assert value["nll"] == expected["nll"], (value, expected)
        cairn("fork", f"{run}@6", "--run", os.path.join(folder, "child"), "train.steps=9")
        child = os.path.join(folder, "child")
        assert digests(child)[6] is None and 6 in stored(child) and all(digests(child)[n] in (None, known[n]) for n in range(1, 9)), digests(child)
        rewrite_journal(run, lambda line: line.update(digest="0" * 32) if line["step"] == 16 else None)
        refused("eval", f"{run}@15", "--text", write_text(folder), says=("run@15 is not verified", "step 16"))
        [fault] = replay(run, "--from", 12, "--to", 20, status=1)["faults"]
        assert fault["step"] == 16 and fault["kind"] == "journal", fault


def test_flipped_bits_are_found_and_located():
    with workspace() as folder:
        run = train(folder, **{"train.steps": 60, "checkpoints.every": 20, "optim.ema": 0.9})

        def damaged(name):
            copy = os.path.join(folder, name)
            shutil.copytree(run, copy)
            return copy

        # The weights of a checkpoint: its own step is named, with tensor, place and both values.
        copy = damaged("weights")
        flip(os.path.join(step_folder(copy, 40), "model.safetensors"))
        for start in (0, 40):
            report = replay(copy, "--from", start, status=1)
            fault = report["faults"][0]
            assert report["first_divergence"] == 40 and fault["kind"] == "checkpoint" and "corrupted" in fault["message"], report
            assert len(report["faults"]) == 1 and report["compared"] == 60 - start + (20 if start else 0), report
            if start == 0:
                tensor = fault["tensor"]
                bits = torch.tensor([float(tensor["stored"]), float(tensor["replayed"])]).view(torch.int32)
                assert tensor["elements"] == tensor["tensors"] == 1 and bin(int(bits[0]) ^ int(bits[1])).count("1") == 1, tensor
                good = load_file(os.path.join(step_folder(run, 40), "model.safetensors"))[tensor["name"]].flatten()[tensor["index"]]
                assert torch.tensor(float(tensor["replayed"])) == good, (tensor, good)

        # A moment, in a checkpoint whose manifest was made to fit: the state's digest tells.
        copy = damaged("moment")
        import xxhash
        path = os.path.join(step_folder(copy, 40), "training", "optimizer.safetensors")
        flip(path, keep_time=True)
        manifest = os.path.join(step_folder(copy, 40), "MANIFEST.json")
        content = open(manifest).read()
        was = next(f["xxh3_128"] for f in json.loads(content)["files"] if f["path"] == "training/optimizer.safetensors")
        content = content.replace(was, xxhash.xxh3_128_hexdigest(open(path, "rb").read()))
        at = content.rindex('  "self": "')
        content = content[:at] + content[at:].replace(json.loads(content)["self"], xxhash.xxh3_128_hexdigest(content[:at].encode()))
        open(manifest, "w").write(content)
        report = replay(copy, "--from", 40, "--to", 45, status=1)
        assert report["first_divergence"] == 40 and report["start"] == 20 and report["faults"][0]["tensor"]["name"].startswith(("optimizer.", "ema.")), report

        # The digest of a line of the journal, and its loss.
        copy = damaged("journal")

        def change(line):
            if line["step"] == 33:
                line["digest"] = f"{int(line['digest'], 16) ^ 1:032x}"
            if line["step"] == 50:
                line["loss"] += 1e-9

        rewrite_journal(copy, change)
        report = replay(copy, status=1)
        assert [(f["step"], f["kind"]) for f in report["faults"]] == [(33, "journal"), (50, "journal")], report
        assert report["compared"] == 60
        # One bit of the file itself: the checksum of the line does not fit.
        copy = damaged("line")
        flip(os.path.join(copy, "journal.jsonl"))
        done = cairn("replay", copy, "--json", check=False)
        assert done.returncode == 1 and "checksum" in done.stderr and not json.loads(done.stdout)["verified"], done

        # The state itself, where the journal goes on from another: the step, and the tensor by the next checkpoint.
        copy = damaged("state")
        rewrite_journal(copy, lambda line: line.update(digest="0" * 32) if line["step"] in range(25, 61) else None)
        other = train(folder, "other", **{"train.steps": 60, "checkpoints.every": 20, "optim.ema": 0.9, "optim.lr": 0.004})
        shutil.rmtree(step_folder(copy, 40))
        shutil.copytree(step_folder(other, 40), step_folder(copy, 40))
        report = replay(copy, status=1)
        fault = report["faults"][0]
        assert report["first_divergence"] == 25 and fault["kind"] == "step" and fault["tensor"] and fault["causes"], report
        assert report["replayed"] == 40 and report["to"] == 60, report  # there it ended
        # The machine of the record is another one: named as the likely cause.
        build = json.load(open(os.path.join(copy, "build.json")))
        build["processor"] = "Another One (family 6, model 1)"
        build.pop("self", None)
        json.dump(build, open(os.path.join(copy, "build.json"), "w"))
        report = replay(copy, status=1)
        assert any("processor" in cause and "Another One" in cause for cause in report["faults"][0]["causes"]), report


def test_a_flipped_bit_of_a_batch_is_found_and_located():
    with workspace() as folder:
        run = train(folder, **{"train.steps": 60, "checkpoints.every": 20})
        # In the tokens that the steps read, at a place that a step between two checkpoints sees first.
        for document in range(60):
            seen = json.loads(cairn("data", "where", run, "--doc", f"text:{document}", "--json").stdout)["seen"]
            places = [s for s in seen if s["tokens"] > 8 and s["step"] > 1]
            if places and min(s["step"] for s in places) == min(s["step"] for s in seen):
                break
        place = min(places, key=lambda s: s["step"])
        at = place["offset"] + place["tokens"] // 2
        expected = min(s["step"] for s in seen if s["offset"] <= at < s["offset"] + s["tokens"])
        content = text().split("<|endoftext|>")[document].encode()
        cache = os.path.join(folder, "cache")
        found = None
        for root, _, files in os.walk(cache):
            for name in files:
                data = open(os.path.join(root, name), "rb").read()
                for width in (1, 2, 4):
                    offset = data.find(b"".join(byte.to_bytes(width, "little") for byte in content))
                    if offset >= 0:
                        found = (os.path.join(root, name), offset + at * width)
        assert found, os.listdir(cache)
        flip(*found, keep_time=True)
        report = replay(run, status=1)
        fault = report["faults"][0]
        assert report["first_divergence"] == expected and fault["kind"] == "step", (report, expected)
        assert any(found[0] in cause and "changed" in cause for cause in fault["causes"]), fault
        # The text itself: nothing is replayed with other data.
        flip(*found, keep_time=True)
        assert replay(run)["verified"]
        flip(write_text(folder))
        done = cairn("replay", run, "--json", check=False)
        assert done.returncode == 1 and "source 'text'" in done.stderr and "changed" in done.stderr, done.stderr


def test_changed_settings_stages_and_skipped_steps():
    """A step is replayed under the settings that made it, whatever came later."""
    with workspace() as folder:
        run = train(folder, **{"train.steps": 20, "checkpoints.every": 8, **CONSTANT})
        for steps, lr in ((30, 0.001), (40, 0.002)):
            set_keys(run, "optim", lr=lr)
            set_keys(run, "train", steps=steps)
            cairn("resume", run, "--json")
        assert [line["lr"] for line in journal(run)][9::10] == [0.003, 0.003, 0.001, 0.002]
        assert replay(run)["verified"] and replay(run, "--from", 18, "--to", 33)["verified"]
        assert cairn("eval", run + "@21", "--text", write_text(folder)).returncode == 0

        stages = [{"name": "first", "steps": 10}, {"name": "second", "steps": 10, "data": {"context": 16}, "optim": {"lr": 0.001, "betas": [0.8, 0.9]}}]
        staged = train(folder, "staged", **{"stages": stages, "train.steps": None, "model.dropout": 0.1, **CONSTANT})
        assert replay(staged)["verified"]

        spike = {"train.on_spike": {"action": "skip", "factor": 1.001, "window": 4}, "train.steps": 40, "checkpoints.every": 15, "optim.lr": 0.03, **CONSTANT}
        skipping = train(folder, "skipping", **spike)
        events = [line for line in journal(skipping) if "events" in line]
        assert len(events) > 3, events
        assert replay(skipping)["verified"] and replay(skipping, "--from", 15)["verified"] and replay(skipping, "--from", 22)["verified"]

        nonfinite = train(folder, "nonfinite", **{"optim.lr": 3e38, "optim.clip": 0, "train.on_nonfinite": "skip", "train.steps": 8, "checkpoints.every": 3, **CONSTANT})
        assert any(event["event"] == "nonfinite" for line in journal(nonfinite) for event in line.get("events", [])), journal(nonfinite)
        assert replay(nonfinite)["verified"]


def test_ranks_replay_on_one():
    with workspace() as folder:
        run = os.path.join(folder, "run")
        file = run_file(folder, write_text(folder), **{"train.steps": 20, "model.dropout": 0.1, "parallel.zero": 1, "parallel.data": 2})
        command = [TORCHRUN, "--no-python", "--nproc-per-node", "2", "--master-port", str(29100 + os.getpid() % 300), "--", CAIRN, "train", file, "--run", run, "--json"]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert journal(run)[0]["ranks"] == 2
        assert replay(run)["verified"] and replay(run, "--from", 10, "--threads", 2)["verified"]


def nll(*arguments, env=None):
    done = cairn("eval", *arguments, "--json", env=env)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return (rows if len(rows) > 1 else rows[0]), done.stderr


def test_addresses():
    with workspace() as folder:
        data = write_text(folder)
        settings = {"train.steps": 40, "optim.ema": 0.9, "eval.every": 4, "eval.sequences": 8}
        run = train(folder, **settings, **{"checkpoints.every": 20})
        every = train(folder, "every", **settings, **{"checkpoints.every": 1, "checkpoints.at": [0]})
        assert digests(run) == digests(every)
        tensors = lambda path: load_file(os.path.join(path, "model.safetensors"))

        # A step that is not stored: rebuilt once, said before, kept, and the same to the bit.
        first, said = nll(f"{run}@27", "--text", data)
        assert "7 steps, about" in said, said
        again, said = nll(f"{run}@27", "--text", data)
        assert first == again == nll(f"{every}@27", "--text", data)[0] and not said, said
        for name, tensor in tensors(step_folder(every, 27)).items():
            assert torch.equal(tensor, tensors(step_folder(run, 27, "cache"))[name]), name
        cairn("verify", step_folder(run, 27, "cache"))
        assert nll(f"{run}@0", "--text", data)[0] == nll(f"{every}@0", "--text", data)[0]
        assert nll(run, "--text", data)[0] == nll(f"{run}@last", "--text", data)[0] == nll(f"{every}@40", "--text", data)[0]

        # The moving average, of stored steps and others: the numbers that the checkpoint holds.
        assert nll(f"{run}@27:ema", "--text", data)[0] == nll(f"{every}@27:ema", "--text", data)[0] != first
        moments = load_file(os.path.join(step_folder(every, 27), "training", "optimizer.safetensors"))
        average = tensors(os.path.join(run, "cache", "step-00000027-ema"))
        assert torch.equal(average["model.norm.weight"], moments["ema.model.norm.weight"])
        cairn("generate", f"{run}@20:ema", "--prompt", "The", "--max-tokens", 4)

        # The best by a metric, wherever it is.
        best = min((line for line in journal(run) if "eval" in line), key=lambda line: line["eval"]["validation"]["nll"])["step"]
        assert nll(f"{run}@best", "--text", data)[0] == nll(f"{every}@{best}", "--text", data)[0]
        assert nll(f"{run}@best:validation_bits_per_byte", "--text", data)[0]["tokens"] > 0
        refused("eval", f"{run}@best:rouge", "--text", data, says=["rouge", "mean_nll"])

        # Sets.
        rows, said = nll(f"{run}@10:40:10", "--text", data)
        assert [row["step"] for row in rows] == [10, 20, 30, 40] and "2 of 4" in said, (rows, said)
        assert [row["nll"] for row in rows] == [nll(f"{every}@{n}", "--text", data)[0]["nll"] for n in (10, 20, 30, 40)]
        assert [row["step"] for row in nll(f"{run}@stored", "--text", data)[0]] == [20, 40]
        for step in (1, 20):
            shutil.copytree(step_folder(every, step), os.path.join(folder, "foreign", f"step{step}"))
        rows = nll(os.path.join(folder, "foreign", "step{N}"), "--text", data)[0]
        assert [row["step"] for row in rows] == [1, 20] and rows[1]["nll"] == nll(f"{every}@20", "--text", data)[0]["nll"]
        with open(os.path.join(folder, "series.yaml"), "w") as file:
            file.write(f"- {{step: 7, path: foreign/step20}}\n- {{step: 3, path: {run}@27}}\n")
        rows = nll(os.path.join(folder, "series.yaml"), "--text", data)[0]
        assert [row["step"] for row in rows] == [3, 7] and rows[0]["nll"] == first["nll"], rows

        # A run that starts from a step that is not stored keeps its address: the cache may go.
        tree = {"model": {"from": f"{run}@33"}, "data": {"train": [{"text": data}], "context": 32, "cache": os.path.join(folder, "cache")},
                "train": {"steps": 6, "batch": 8, "micro_batch": 2, "lanes": 4, "threads": 1}, "checkpoints": {"every": 3}}
        with open(os.path.join(folder, "from.yaml"), "w") as file:
            json.dump(tree, file)
        child = os.path.join(folder, "child")
        cairn("train", os.path.join(folder, "from.yaml"), "--run", child, "--json")
        assert f"{run}@33" in open(os.path.join(child, "run.yaml")).read()
        shutil.rmtree(os.path.join(run, "cache"))
        assert replay(child)["verified"] and os.path.exists(step_folder(run, 33, "cache"))

        # A damaged checkpoint is rebuilt from the one before; several processes want the same.
        flip(os.path.join(step_folder(run, 40), "model.safetensors"))
        processes = [subprocess.Popen([CAIRN, "eval", f"{run}@40", "--text", data, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
        answers = [process.communicate(timeout=120) for process in processes]
        expected = nll(f"{every}@40", "--text", data)[0]
        assert all(json.loads(out) == expected for out, _ in answers), answers
        assert all("damaged" in err for _, err in answers) and sum("steps, about" in err for _, err in answers) == 1, answers
        said = nll(f"{run}@last", "--text", data)[1]
        assert "step 40" in said and "going back to step 20" in said, said

        # The cache has a limit: what was used longest ago goes.
        shutil.rmtree(os.path.join(run, "cache"))
        size = sum(f["size"] for f in json.load(open(os.path.join(step_folder(run, 20), "MANIFEST.json")))["files"])
        limit = {"CAIRN_CACHE_GIB": str(2.5 * size / 2**30)}
        for step in (3, 5, 3, 7):
            nll(f"{run}@{step}", "--text", data, env=limit)
            time.sleep(0.02)
        assert sorted(n for n in os.listdir(os.path.join(run, "cache")) if n.startswith("step")) == ["step-00000003", "step-00000007"]
        done = cairn("eval", f"{run}@1:19", "--text", data, check=False, env=limit)
        assert done.returncode == 1 and "CAIRN_CACHE_GIB" in done.stderr, done.stderr


def set_keys(run, section, **values):
    """Settings of run.yaml that stand alone on their lines."""
    path = os.path.join(run, "run.yaml")
    lines = open(path).read().split("\n")
    first = lines.index(section + ":") + 1
    last = next(i for i in range(first, len(lines)) if not lines[i].startswith(" "))
    for key, value in values.items():
        places = [i for i in range(first, last) if lines[i].startswith(f"  {key}:")]
        assert len(places) == 1, (key, places)
        lines[places[0]] = f"  {key}: {value}"
    open(path, "w").write("\n".join(lines))


def test_a_run_that_goes_back():
    """What was rebuilt or measured of steps that were made anew since is not given for them."""
    with workspace() as folder:
        data = write_text(folder)
        run = train(folder, **{"train.steps": 12, "checkpoints.every": 5, "checkpoints.at_end": True, "optim.ema": 0.9, **CONSTANT})
        assert stored(run) == [5, 10, 12]
        before, average = nll(f"{run}@7", "--text", data)[0], nll(f"{run}@7:ema", "--text", data)[0]
        kept = nll(f"{run}@3", "--text", data)[0]
        # A weights-only copy of step 8, and one that a process is using while the run goes back.
        nll(f"{run}@8:9", "--text", data)
        replay(run, "--probe", "grad_norm")
        cairn("analyze", run, "norm")
        old = digests(run)
        held = os.path.join(folder, "held")
        shutil.copytree(step_folder(run, 7, "cache"), held)
        for step in (10, 12):
            shutil.rmtree(step_folder(run, step))
        set_keys(run, "optim", lr=0.0001)
        cairn("resume", run, "--json")
        new = digests(run)
        assert new[5] == old[5] and new[7] != old[7]
        assert sorted(n for n in os.listdir(os.path.join(run, "cache")) if n.startswith("step")) == ["step-00000003"]
        for name, steps in (("probes/grad_norm", {1, 2, 3, 4, 5}), ("analysis/norm", {5})):
            series = [json.loads(line) for line in open(os.path.join(run, name + ".jsonl"))]
            assert {row["step"] for row in series} == steps, (name, series[-1])
        # One that could not be dropped, because it was in use, is known by its digest.
        shutil.copytree(held, step_folder(run, 7, "cache"))
        after, said = nll(f"{run}@7", "--text", data)
        assert after["nll"] != before["nll"] and "2 steps, about" in said, (after, before, said)
        assert json.load(open(os.path.join(step_folder(run, 7, "cache"), "training", "state.json")))["digest"] == new[7]
        assert nll(f"{run}@7:ema", "--text", data)[0]["nll"] != average["nll"]
        assert nll(f"{run}@3", "--text", data)[0] == kept and replay(run)["verified"]

        # The settings of a step are those that made it; no state is rebuilt to say so.
        cache = sorted(os.listdir(os.path.join(run, "cache")))
        out = json.loads(cairn("diff", f"{run}@4", f"{run}@9", "--config", "--json").stdout)
        assert out["changes"] == [{"key": "optim.lr", "a": 0.003, "b": 0.0001}] and out["a"] == f"{run}@4", out
        assert json.loads(cairn("diff", f"{run}@9", run, "--config", "--json").stdout)["identical"]
        assert sorted(os.listdir(os.path.join(run, "cache"))) == cache
        refused("diff", f"{run}@13", run, "--config", says=["beyond the run"])


def test_sets_are_said_and_checked_once():
    with workspace() as folder:
        data = write_text(folder)
        settings = {"train.steps": 20, "optim.ema": 0.9}
        run = train(folder, **settings, **{"checkpoints.every": 10})
        every = train(folder, "every", **settings, **{"checkpoints.every": 1})
        rows, said = nll(f"{run}@2:16:7", "--text", data)
        # 2 and 9 from the start, 16 from the checkpoint of step 10.
        assert "3 of 3" in said and "15 steps, about" in said and said.count("about") == 1, said
        assert [row["nll"] for row in rows] == [nll(f"{every}@{n}", "--text", data)[0]["nll"] for n in (2, 9, 16)]
        again, said = nll(f"{run}@2:16:7", "--text", data)
        assert again == rows and not said, said

        # Weights alone do not stand in the way of what needs more.
        assert nll(f"{run}@9:ema", "--text", data)[0] == nll(f"{every}@9:ema", "--text", data)[0]
        answer, said = nll(f"{run}@16", "--text", data)
        assert answer == nll(f"{every}@16", "--text", data)[0] and not said, said
        averages, said = nll(f"{run}@2:16:7:ema", "--text", data)
        assert "2 of 3" in said and said.count("about") == 1, said
        assert [row["nll"] for row in averages] == [nll(f"{every}@{n}:ema", "--text", data)[0]["nll"] for n in (2, 9, 16)]

        # Any number may be mistyped: refused before a list of its steps is made.
        begin = time.time()
        for last in ("30", "100000000000", str(2**63 - 1)):
            refused("eval", f"{run}@0:{last}", "--text", data, says=["beyond the run", "step 20"])
        refused("eval", f"{run}@5:{2**63 - 1}:{2**62}", "--text", data, says=["beyond the run"])
        refused("eval", f"{run}@5:{2**63}", "--text", data, status=2, says=["is no step"])
        assert time.time() - begin < 20
        assert nll(f"{run}@19:25:20", "--text", data)[0]["tokens"] > 0  # of its steps, only one that is there


def test_a_run_without_journal():
    with workspace() as folder:
        data = write_text(folder)
        run = train(folder, **{"train.steps": 10, "checkpoints.every": 5, **CONSTANT})
        os.remove(os.path.join(run, "journal.jsonl"))
        child = os.path.join(folder, "child")
        refused("fork", f"{run}@5", "--run", child, says=["no journal.jsonl", "model.from"])
        assert not os.path.exists(child)
        done = cairn("verify", run, "--json", check=False)
        fault = json.loads(done.stdout)["fault"]
        assert done.returncode == 1 and fault["path"].endswith("journal.jsonl") and "missing" in fault["problem"], done
        assert nll(f"{run}@5", "--text", data)[0]["tokens"] > 0
        assert [row["step"] for row in nll(f"{run}@5:10:5", "--text", data)[0]] == [5, 10]
        refused("eval", f"{run}@7", "--text", data, says=["no journal.jsonl"])
        refused("eval", f"{run}@5:15:5", "--text", data, says=["beyond the run", "no journal.jsonl"])

        # Lines without digests are lines.
        bare = train(folder, "bare", **{"train.steps": 10, "checkpoints.every": 5, **CONSTANT})
        rewrite_journal(bare, lambda line: line.update(digest=None))
        cairn("verify", bare)


def test_forks_into_one_folder():
    with workspace() as folder:
        parent = train(folder, "parent", **{"train.steps": 40, "checkpoints.every": 40})
        child = os.path.join(folder, "child")
        # Several at once: one makes the run, and no other takes anything of it away.
        forks = [subprocess.Popen([CAIRN, "fork", f"{parent}@39", "--run", child, "--no-train"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
        said = [fork.communicate(timeout=120)[1] for fork in forks]
        assert sorted(fork.returncode for fork in forks) == [0, 1, 1, 1], said
        assert all("being written by process" in err or "not empty" in err for fork, err in zip(forks, said) if fork.returncode), said
        cairn("resume", child, "--json")
        assert digests(child) == digests(parent) and not os.path.exists(os.path.join(child, ".tmp-fork"))
        cairn("verify", child)

        # One that is killed leaves a folder that the next takes over.
        left = os.path.join(folder, "left")
        fork = subprocess.Popen([CAIRN, "fork", f"{parent}@39", "--run", left, "--no-train"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not os.path.exists(os.path.join(left, ".tmp-fork")):
            assert fork.poll() is None
            time.sleep(0.001)
        fork.kill()
        fork.wait()
        assert not os.path.exists(os.path.join(left, "run.yaml"))
        os.makedirs(step_folder(left, 12))
        open(os.path.join(left, "journal.jsonl"), "w").write("{")
        done = cairn("fork", f"{parent}@7", "--run", left, "--no-train")
        assert "made anew" in done.stderr and stored(left) == [7], (done.stderr, stored(left))
        cairn("resume", left, "--json")
        assert digests(left) == digests(parent)
        # What is not a fork's is never taken.
        mine = os.path.join(folder, "mine")
        os.makedirs(mine)
        open(os.path.join(mine, "notes.txt"), "w").write("mine")
        refused("fork", f"{parent}@7", "--run", mine, says=["not empty", "delete it"])
        assert open(os.path.join(mine, "notes.txt")).read() == "mine"


def test_addresses_that_are_refused():
    with workspace() as folder:
        data = write_text(folder)
        run = train(folder, **{"train.steps": 20, "checkpoints.every": 10})
        refused("eval", f"{run}@21", "--text", data, says=["beyond the run", "step 20"])
        refused("eval", f"{run}@15:30:5", "--text", data, says=["beyond the run"])
        refused("eval", f"{run}@soon", "--text", data, status=2, says=["'soon' is no step"])
        refused("eval", f"{run}@20:10", "--text", data, status=2, says=["A <= B"])
        refused("eval", f"{run}@10:ema", "--text", data, says=["no moving average"])
        refused("eval", os.path.join(folder, "none") + "@3", "--text", data, says=["no such"])
        refused("fork", f"{run}@21", "--run", os.path.join(folder, "f"), says=["beyond the run"])
        refused("fork", f"{run}@5", "--run", os.path.join(folder, "f"), "optim.learning_rate=1", status=2, says=["learning_rate", "did you mean 'lr'"])
        refused("fork", f"{run}@5", "--run", os.path.join(folder, "f"), "model.hidden_size=64", status=2, says=["shape"])
        assert not os.path.exists(os.path.join(folder, "f"))
        refused("fork", f"{run}@5", "--run", run, says=["not empty"])

        pickled = os.path.join(folder, "pickled")
        shutil.copytree(step_folder(run, 10), pickled)
        torch.save(load_file(os.path.join(pickled, "model.safetensors")), os.path.join(pickled, "pytorch_model.bin"))
        os.remove(os.path.join(pickled, "model.safetensors"))
        refused("eval", pickled, "--text", data, says=["pickled", "save_file"])

        bare = os.path.join(folder, "bare")
        shutil.copytree(run, bare)
        os.remove(os.path.join(bare, "journal.jsonl"))
        refused("replay", bare, says=["no journal.jsonl"])
        refused("eval", f"{bare}@15", "--text", data, says=["no journal.jsonl"])
        cairn("eval", f"{bare}@10", "--text", data)

        blank = os.path.join(folder, "blank")
        shutil.copytree(run, blank)
        rewrite_journal(blank, lambda line: line.update(digest=None))
        refused("replay", blank, says=["no digest"])
        refused("eval", f"{blank}@15", "--text", data, says=["cannot be verified"])

        wrong = os.path.join(folder, "wrong")
        shutil.copytree(run, wrong)
        rewrite_journal(wrong, lambda line: line.update(digest="0" * 32) if line["step"] == 13 else None)
        refused("eval", f"{wrong}@15", "--text", data, says=["not verified", "step 13", "cairn replay"])
        assert not os.path.exists(step_folder(wrong, 15, "cache"))


def test_forks():
    with workspace() as folder:
        settings = {"train.steps": 60, "checkpoints.every": 20, "optim.ema": 0.9, "model.dropout": 0.1, "train.on_spike": {"action": "skip", "factor": 1.05, "window": 10}}
        parent = train(folder, "parent", **settings)
        expected = digests(parent)

        # Without changes, from a step that is not stored and from one that is: the parent's digests.
        for step in (33, 40, 0):
            child = os.path.join(folder, f"same-{step}")
            out = json.loads(cairn("fork", f"{parent}@{step}", "--run", child, "--json").stdout)
            assert digests(child) == expected and out["step"] == 60 and out["changed"] == [], out
            assert json.load(open(os.path.join(child, "build.json")))["parent"]["step"] == step
            assert replay(child)["verified"]
        forks = [json.loads(line) for line in open(os.path.join(parent, "forks.jsonl"))]
        assert [(os.path.basename(f["run"]), f["step"]) for f in forks] == [("same-33", 33), ("same-40", 40), ("same-0", 0)], forks
        parent_of = [line.get("parent") for line in journal(os.path.join(folder, "same-33"))]
        assert [i + 1 for i, p in enumerate(parent_of) if p] == [34] and parent_of[33] == {"run": parent, "step": 33}, parent_of[33]

        # With changes: the past is the parent's, what follows is not; each state of the child can be addressed.
        child = os.path.join(folder, "child")
        cairn("fork", f"{parent}@33", "--run", child, "optim.lr=0.001", "train.steps=50", "--no-train")
        assert json.loads(cairn("log", child, "--json").stdout)["steps"] == 33
        cairn("resume", child, "--json")
        now = digests(child)
        assert all(now[n] == expected[n] for n in range(1, 34)) and now[34] != expected[34] and len(now) == 50
        assert replay(child)["verified"] and replay(child, "--from", 30, "--to", 45)["verified"]
        data = write_text(folder)
        assert nll(f"{child}@25", "--text", data)[0] == nll(f"{parent}@25", "--text", data)[0]
        assert nll(f"{child}@41", "--text", data)[0]["tokens"] > 0
        grandchild = os.path.join(folder, "grandchild")
        cairn("fork", f"{child}@37", "--run", grandchild, "--json")
        assert digests(grandchild) == now and replay(grandchild, "--from", 20)["verified"]

        # Another optimizer, no average, other seeds.
        other = os.path.join(folder, "other")
        cairn("fork", f"{parent}@33", "--run", other, "optim.ema=0", "optim.name=muon", "seed=9", "--json")
        assert replay(other)["verified"] and replay(other, "--from", 33)["verified"]
        cairn("verify", other)
        bare = os.path.join(folder, "bare")
        out = json.loads(cairn("fork", f"{parent}@40", "--run", bare, "--no-train", "--json", "optim.schedule={name: linear, decay: null}", "optim.lr=0.001").stdout)
        assert {c["key"]: c["now"] for c in out["changed"]} == {"optim.lr": 0.001, "optim.schedule.name": "linear", "optim.schedule.decay": None}, out["changed"]
        # A parent that is gone is not needed.
        shutil.move(parent, parent + "-gone")
        assert replay(child)["verified"] and nll(f"{child}@12", "--text", data)[0]["tokens"] > 0


def windows(run, steps):
    shown = [json.loads(cairn("data", "show", f"{run}@{step}", "--json").stdout) for step in steps]
    return [(s["source"], s["epoch"], s["window"]) for step in shown for s in step["sequences"]]


def test_forks_with_other_data_go_on_where_the_sources_stood():
    with workspace() as folder:
        more = os.path.join(folder, "more.txt")
        with open(more, "w") as file:
            file.write(text(seed=3))
        parent = train(folder, "parent", **{"train.steps": 20, "checkpoints.every": 10})
        child = os.path.join(folder, "child")
        cairn("fork", f"{parent}@13", "--run", child, f'data.train=[{{text: {os.path.join(folder, "text.txt")}}}, {{text: {more}}}]', "optim.schedule={name: linear, warmup: 2}",
              "train.steps=24", "--json")
        assert digests(child)[13] == digests(parent)[13] and len(digests(child)) == 24
        assert windows(child, [1, 13]) == windows(parent, [1, 13])
        seen = windows(child, range(1, 25))
        assert len(set(seen)) == len(seen) and {"text", "more"} == {s for s, _, _ in windows(child, [14])}
        rates = [line["lr"] for line in journal(child)]
        assert rates[13] < rates[14] and rates[-1] == 0, rates[12:]  # the schedule begins at the fork
        assert replay(child)["verified"]
        batch = os.path.join(folder, "batch")
        refused("fork", f"{child}@18", "--run", batch, "train.batch=16", status=2, says=["schedule of its own"])
        cairn("fork", f"{parent}@18", "--run", batch, "train.batch=16", "--json")
        assert journal(batch)[-1]["batch"]["rows"] == 16 and replay(batch)["verified"]
        seen = windows(batch, range(1, 21))
        assert len(set(seen)) == len(seen) == 18 * 8 + 2 * 16


def test_two_writers_and_a_run_that_is_training():
    with workspace() as folder:
        run = os.path.join(folder, "run")
        data = write_text(folder)
        file = run_file(folder, data, **{"train.steps": 100000, "checkpoints.every": 5, "checkpoints.keep": {"last": 3}, **CONSTANT})
        process = subprocess.Popen([CAIRN, "train", file, "--run", run, "--json"], stdout=subprocess.DEVNULL)
        try:
            while not os.path.exists(os.path.join(run, "journal.jsonl")) or len(journal(run)) < 30:
                time.sleep(0.05)
            refused("resume", run, says=["being written by process"])
            refused("fork", f"{run}@10", "--run", run, says=["not empty"])
            assert replay(run, "--to", 25)["verified"]
            assert nll(f"{run}@17", "--text", data)[0]["tokens"] > 0
            child = os.path.join(folder, "child")
            cairn("fork", f"{run}@21", "--run", child, "train.steps=30", "--json")
            assert all(digest == digests(run)[n] for n, digest in digests(child).items())
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
        assert process.returncode == 0


if __name__ == "__main__":
    main([test_replay_from_every_checkpoint, test_digests_every_so_many_steps, test_part_of_a_run_and_several_processes, test_probes_change_no_bit, test_flipped_bits_are_found_and_located,
          test_a_flipped_bit_of_a_batch_is_found_and_located, test_changed_settings_stages_and_skipped_steps, test_ranks_replay_on_one, test_addresses,
          test_a_run_that_goes_back, test_sets_are_said_and_checked_once, test_a_run_without_journal, test_forks_into_one_folder,
          test_addresses_that_are_refused, test_forks, test_forks_with_other_data_go_on_where_the_sources_stood, test_two_writers_and_a_run_that_is_training])
