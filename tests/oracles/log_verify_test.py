"""cairn log: the time line, fast on a long journal. cairn verify: one flipped bit anywhere is found and named."""
import json
import os
import random
import shutil
import struct
import time

from harness import cairn, journal, main, run_file, text, workspace


def crc32c_table():
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


TABLE = crc32c_table()


def journal_line(values):
    """A line as the journal has it: CRC-32C of what stands before `crc`."""
    body = json.dumps(values, separators=(",", ":"))[:-1]
    crc = 0xFFFFFFFF
    for byte in body.encode():
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 255]
    return f'{body},"crc":"{crc ^ 0xFFFFFFFF:08x}"}}\n'


def train(folder, name="run", **changes):
    path = os.path.join(folder, "text.txt")
    if not os.path.exists(path):
        with open(path, "w") as file:
            file.write(text())
    run = os.path.join(folder, name)
    cairn("train", run_file(folder, path, **{"train.steps": 12, "optim.schedule.name": "constant", "optim.schedule.decay": None, **changes}),
          "--run", run, "--json")
    return run


def log(run):
    return json.loads(cairn("log", run, "--json").stdout)


def verify(path):
    done = cairn("verify", path, "--json", check=False)
    out = json.loads(done.stdout)
    assert done.returncode == (0 if out["verified"] else 1) and out["verified"] == (out["fault"] is None), (done, out)
    return out


def timed(*arguments):
    begin = time.time()
    cairn(*arguments)
    return time.time() - begin


def flip(path, at, bit):
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def test_time_line():
    with workspace() as folder:
        stages = [{"name": "first", "steps": 8}, {"name": "second", "steps": 4, "optim": {"lr": 0.001}}]
        run = train(folder, **{"stages": stages, "train.steps": None, "eval.every": 4, "eval.sequences": 4})
        out = log(run)
        assert out["steps"] == 12 and [c["step"] for c in out["checkpoints"]] == [5, 10, 12]
        lines = {line["step"]: line for line in journal(run)}
        for c in out["checkpoints"]:
            folder_of = os.path.join(run, "checkpoints", f"step-{c['step']:08}")
            files = sum(os.path.getsize(os.path.join(place, name)) for place, _, names in os.walk(folder_of) for name in names if name != "MANIFEST.json")
            assert c["kind"] == "full" and c["digest"] == lines[c["step"]]["digest"] and c["bytes"] == files
        assert out["stages"] == [{"name": "first", "from": 1, "to": 8}, {"name": "second", "from": 9, "to": 12}]
        assert out["range"] == {"from": 0, "to": 12, "replay_from": [0, 5, 10, 12], "longest_replay": 4}, out["range"]
        assert [v["step"] for v in out["validation"]["validation"]] == [4, 8, 12]
        assert out["validation"]["validation"][1]["nll"] == lines[8]["eval"]["validation"]["nll"]
        assert out["unverified"] == [] and out["machines"] == [] and out["events"] == [] and out["torn"] is False
        shown = cairn("log", run).stdout
        for part in ("second, to step 12", out["checkpoints"][0]["digest"], "run@0 to ", "at most 4 steps", "nats a token", "llama"):
            assert part in shown, (part, shown)


def test_another_machine_is_said():
    with workspace() as folder:
        run = train(folder)
        file = os.path.join(run, "build.json")
        build = json.load(open(file))
        build["machines"] = [{"after_step": 7, **{k: build[k] for k in ("program", "torch", "mkl", "vectors", "threads")}, "processor": "Elbrus"}]
        build["machines"][0]["threads"] += 1
        with open(file, "w") as out:
            json.dump(build, out)
        [stretch] = log(run)["unverified"]
        assert (stretch["from"], stretch["to"]) == (8, 12) and "Elbrus" in stretch["why"], stretch
        shown = cairn("log", run).stdout
        assert "processor Elbrus (was " in shown and "unverified   steps 8 to 12" in shown, shown


def test_family():
    with workspace() as folder:
        root, child, grandchild = (train(folder, name) for name in ("root", "child", "grandchild"))

        def fork(parent, run, step):
            file = os.path.join(run, "build.json")
            build = json.load(open(file))
            build["parent"] = {"run": parent, "step": step, "digest": journal(parent)[step - 1]["digest"]}
            with open(file, "w") as out:
                json.dump(build, out)
            with open(os.path.join(parent, "forks.jsonl"), "a") as out:
                out.write(json.dumps({"run": run, "step": step}) + "\n")
        fork(root, child, 5)
        fork(child, grandchild, 10)
        with open(os.path.join(root, "forks.jsonl"), "a") as out:
            out.write(json.dumps({"run": "/gone", "step": 6}) + "\n" + '{"run": "/to')
        out = log(child)
        assert out["family"]["parent"]["run"] == root
        shutil.rmtree(os.path.join(child, "checkpoints", "step-00000005"))
        assert log(child)["range"]["replay_from"] == [0, 5, 10, 12]  # 5 is the parent's
        assert log(grandchild)["range"]["replay_from"] == [0, 5, 10, 12]
        assert out["family"]["ancestors"] == [{"run": root, "step": 5, "found": True}]
        assert out["family"]["children"] == [{"run": grandchild, "step": 10, "found": True, "children": []}]
        assert [a["run"] for a in log(grandchild)["family"]["ancestors"]] == [root, child]
        down = log(root)["family"]["children"]
        assert down[0]["children"][0]["run"] == grandchild and down[1] == {"run": "/gone", "step": 6, "found": False, "children": []}
        shown = cairn("log", child).stdout
        assert f"forked      from {root}\n" in shown
        assert f"@5 → {child}  (this run)" in shown and f"@10 → {grandchild}" in shown, shown
        # A run that is its own parent ends too.
        fork(child, root, 3)
        assert log(root)["steps"] == 12


def test_a_long_journal_opens_fast():
    with workspace() as folder:
        run = train(folder)
        lines = []
        for step in range(1, 100_001):
            line = {"step": step, "tokens": step * 8192, "loss": 3.25 + 1 / step, "grad_norm": 0.5123456789, "lr": 0.00123456, "accuracy": 0.25,
                    "batch": {"seed": 1234, "rows": 32, "context": 256}, "digest": f"{step * 2654435761 % 2**128:032x}", "seconds": 0.123456789}
            if step % 100 == 0:
                line["eval"] = {"validation": {"nll": 3.0 + 1 / step, "bits_per_byte": 1.2, "tokens": 16384}}
            if step % 1000 == 7:
                line["events"] = [{"event": "spike", "threshold": 4.5, "action": "skip"}]
            lines.append(journal_line(line))
        path = os.path.join(run, "journal.jsonl")
        with open(path, "w") as file:
            file.writelines(lines)
        out = log(run)
        assert out["steps"] == 100_000 and len(out["events"]) == 100 and len(out["validation"]["validation"]) == 1000, (out["steps"], len(out["events"]))
        start = min(timed("models") for _ in range(3))
        opened = min(timed("log", run) for _ in range(3))
        print(f"      cairn log of 100,000 lines ({os.path.getsize(path) / 1e6:.0f} MB): {opened - start:.2f} s beyond the start of {start:.2f} s")
        assert opened - start < 0.5, (opened, start)


def test_a_run_as_it_was_written():
    with workspace() as folder:
        run = train(folder, **{"optim.ema": 0.9, "checkpoints.log_spaced": True})
        out = verify(run)
        kinds = [c["kind"] for c in out["checked"]]
        assert kinds == ["settings", "build", "journal"] + ["checkpoint"] * 8, kinds
        assert all("digest of the state" in c["what"] for c in out["checked"][3:]) and "that of the journal" in out["checked"][-1]["what"]
        step = os.path.join(run, "checkpoints", "step-00000005")
        assert [c["kind"] for c in verify(step)["checked"]] == ["checkpoint"]
        for path in (os.path.join(folder, "none"), folder):
            assert cairn("verify", path, check=False).returncode == 2
        # A run that goes on, and one that was told to go on elsewhere, is whole too.
        cairn("resume", run, "--threads", "2", "--json")
        assert verify(run)["verified"]
        # A state that its manifest does not describe: every file as the manifest has it, and yet another state.
        other = os.path.join(run, "checkpoints", "step-00000010")
        shutil.rmtree(step)
        shutil.copytree(other, step)
        assert "step 5, but holds 10" in verify(run)["fault"]["problem"]
        shutil.rmtree(step)
        lines = open(os.path.join(run, "journal.jsonl")).readlines()

        def faulty(kept, *parts):
            with open(os.path.join(run, "journal.jsonl"), "w") as file:
                file.writelines(kept)
            fault = verify(run)["fault"]
            assert fault and all(part in fault["path"] + fault["problem"] for part in parts), (parts, fault)
        faulty(lines[:6] + lines[7:], "journal.jsonl", "line 7", "step 8 after step 6")
        faulty(lines[:8] + lines[6:7] + lines[8:], "journal.jsonl", "line 9", "step 7 after step 8")
        faulty(lines[:11], "step-00000012", "ends at step 11")
        faulty(lines[:-1] + [lines[-1][:-20]], "journal.jsonl", "line 12", "torn")
        swapped = dict(json.loads(lines[9]), digest=json.loads(lines[8])["digest"])
        del swapped["crc"]
        faulty(lines[:9] + [journal_line(swapped)] + lines[10:], "step-00000010", "the journal has")


def test_one_flipped_bit_of_a_run():
    draw = random.Random(7)
    with workspace() as folder:
        run = train(folder, **{"train.steps": 6, "checkpoints.every": 3})
        step = os.path.join(run, "checkpoints", "step-00000003")
        files = [os.path.join(place, name) for place, _, names in os.walk(step) for name in names]
        assert len(files) >= 8
        files += [os.path.join(run, name) for name in ("journal.jsonl", "run.yaml", "build.json")] * 4
        for path in files:
            at, bit = draw.randrange(os.path.getsize(path)), draw.randrange(8)
            flip(path, at, bit)
            fault = verify(run)["fault"]
            assert fault and os.path.basename(path) in fault["path"] + fault["problem"], (path, at, bit, fault)
            flip(path, at, bit)
        assert verify(run)["verified"]


def test_one_flipped_bit_of_a_trajectory():
    draw = random.Random(9)
    with workspace() as folder:
        run = train(folder, **{"train.steps": 6, "checkpoints.every": 0, "trajectory.every": 2})
        place = os.path.join(run, "trajectory")
        assert verify(run)["checked"][-1]["kind"] == "trajectory" and [c["kind"] for c in verify(place)["checked"]] == ["trajectory"]
        files = sorted(name for name in os.listdir(place) if name.endswith(".h5") and name != "trajectory.h5")
        assert files, os.listdir(place)
        for _ in range(4):
            path = os.path.join(place, draw.choice(files))
            at, bit = draw.randrange(os.path.getsize(path)), draw.randrange(8)
            flip(path, at, bit)
            for given in (run, place):
                fault = verify(given)["fault"]
                assert fault and os.path.basename(path) in fault["path"] + fault["problem"], (path, at, bit, fault)
            flip(path, at, bit)
        assert verify(run)["verified"]


def test_a_trajectory_without_its_files():
    with workspace() as folder:
        run = train(folder, **{"train.steps": 6, "checkpoints.every": 0, "trajectory.every": 2})
        place = os.path.join(run, "trajectory")
        gone = [name for name in os.listdir(place) if name.endswith(".h5")]
        assert gone and "MANIFEST.json" in os.listdir(place)
        for name in gone:
            os.remove(os.path.join(place, name))
        for given in (run, place):
            done = cairn("verify", given, "--json", check=False)
            fault = json.loads(done.stdout)["fault"]
            assert done.returncode == 1 and fault and any(name in fault["path"] for name in gone) and "missing" in fault["problem"], fault


def test_one_flipped_bit_of_a_model():
    draw = random.Random(8)
    with workspace() as folder:
        run = train(folder, **{"train.steps": 6, "checkpoints.every": 0})
        model = os.path.join(folder, "model")
        shutil.copytree(os.path.join(run, "checkpoints", "step-00000006"), model, ignore=shutil.ignore_patterns("training", "MANIFEST.json"))
        out = verify(model)
        assert [c["kind"] for c in out["checked"]] == ["weights", "model"], out
        weights = os.path.join(model, "model.safetensors")
        assert [c["kind"] for c in verify(weights)["checked"]] == ["weights"]
        with open(weights, "rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            header = file.read(length).decode()
        # Everything but the metadata, where any word is allowed, and the spaces that pad the header.
        begin, end = header.index("}") + 1, len(header.rstrip())
        for _ in range(12):
            at, bit = draw.choice([draw.randrange(8), 8 + draw.randrange(begin, end)]), draw.randrange(8)
            flip(weights, at, bit)
            fault = verify(model)["fault"]
            assert fault and fault["path"].startswith(model) and fault["problem"], (at, bit, fault)
            flip(weights, at, bit)
        series = os.path.join(folder, "series")
        for n in (1, 2):
            shutil.copytree(model, os.path.join(series, f"step{n}"))
        assert len(verify(series)["checked"]) == 4
        export = os.path.join(folder, "export")
        cairn("export", run, "--format", "hf", "--out", export)
        assert [c["kind"] for c in verify(export)["checked"]] == ["checkpoint", "weights", "model"]
        flip(os.path.join(export, "model.safetensors"), 8 + length + 3, 2)
        assert "corrupted" in verify(export)["fault"]["problem"]
        with open(os.path.join(model, "config.json"), "r+") as file:
            config = json.load(file)
            file.seek(0)
            file.truncate()
            json.dump(dict(config, num_hidden_layers=3), file)
        assert "missing" in verify(model)["fault"]["problem"]
        with open(os.path.join(model, "config.json"), "w") as file:
            json.dump(dict(config, model_type="a-family-of-another-world"), file)
        assert "not known" in verify(model)["checked"][1]["what"]
        # Sharded: the index names a tensor that its file has not.
        os.rename(weights, os.path.join(model, "model-00001-of-00001.safetensors"))
        names = [n for n in json.loads(header) if n != "__metadata__"]
        index = {"metadata": {}, "weight_map": {n: "model-00001-of-00001.safetensors" for n in names}}
        path = os.path.join(model, "model.safetensors.index.json")
        for extra, fault in (({}, None), ({"ghost": "model-00001-of-00001.safetensors"}, "ghost"), ({"ghost": "model-00002-of-00002.safetensors"}, "00002")):
            with open(path, "w") as file:
                json.dump(dict(index, weight_map={**index["weight_map"], **extra}), file)
            for place in (model, path):
                found = verify(place)["fault"]
                assert (found is None) == (fault is None) and (fault is None or fault in found["problem"]), (extra, found)


if __name__ == "__main__":
    main([test_time_line, test_another_machine_is_said, test_family, test_a_long_journal_opens_fast, test_a_run_as_it_was_written,
          test_one_flipped_bit_of_a_run, test_one_flipped_bit_of_a_trajectory, test_a_trajectory_without_its_files, test_one_flipped_bit_of_a_model])
