"""What a user can do wrong, and what the machine can do to him: one clear sentence, the right exit status, nothing lost."""
import json
import os
import shlex
import shutil
import signal
import subprocess
import time

from harness import CAIRN, cairn, digests, journal, main, run_file, text, workspace


def write_text(folder, name="text.txt", seed=0):
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text(seed=seed))
    return path


def train(folder, name="run", path=None, check=True, **changes):
    run = os.path.join(folder, name)
    done = cairn("train", run_file(folder, path or write_text(folder), **changes), "--run", run, "--json", check=check)
    return run, done


def refused(status, *parts, arguments):
    done = cairn(*arguments, check=False)
    assert done.returncode == status, (arguments, done.returncode, done.stderr)
    assert all(part in done.stderr for part in parts), (arguments, parts, done.stderr)
    assert len(done.stderr.strip().splitlines()) <= 2 and "frame #" not in done.stderr, done.stderr


def stored(run):
    return [c["step"] for c in json.loads(cairn("log", run, "--json").stdout)["checkpoints"]]


CONSTANT = {"optim.schedule.name": "constant", "optim.schedule.decay": None}


def test_changed_data_stops_a_resume():
    with workspace() as folder:
        first, second = write_text(folder, "first.txt"), write_text(folder, "second.txt", seed=1)
        data = {"data.train": [{"text": first}, {"text": second}], "train.steps": 12}
        run, _ = train(folder, path=first, **data)
        assert [s["name"] for s in json.load(open(os.path.join(run, "build.json")))["sources"]] == ["first", "second"]
        before = digests(run)
        os.utime(second)  # a new time alone changes nothing
        cairn("resume", run)
        with open(second, "a") as file:
            file.write(" One more sentence.")
        for verb in (["resume", run], ["data", "show", run + "@3"], ["data", "where", run, "--doc", "first:3"]):
            refused(1, "'second'", "second.txt", "changed", "build.json", arguments=verb)
        assert digests(run) == before and stored(run) == [5, 10, 12]
        write_text(folder, "second.txt", seed=1)
        assert cairn("resume", run).returncode == 0
        # A trained tokenizer makes other tokens of every source: the one whose text changed is named.
        run, _ = train(folder, name="bpe", path=first, **data, **{"data.tokenizer": {"train": {"kind": "bpe", "vocab_size": 300}}})
        with open(second, "w") as file:
            file.write("zyx wvu " * 4000)
        refused(1, "'second'", arguments=["resume", run])


def test_a_run_that_stops_itself_keeps_the_state_before():
    with workspace() as folder:
        spike = {"optim.lr": 1, "train.on_spike": {"action": "stop", "window": 4, "factor": 1.05}, "checkpoints.every": 0}
        run, done = train(folder, check=False, **spike)
        report, lines = json.loads(done.stdout), journal(run)
        assert done.returncode == 1 and report["stopped_by"] == "spike" and "resume" in done.stderr, (done.stdout, done.stderr)
        assert stored(run) == [report["step"]] and lines[-1]["step"] == report["step"] + 1
        assert lines[-1]["events"][0]["event"] == "spike" and lines[-1]["events"][0]["action"] == "stop"
        assert digests(run)[report["step"]] == json.loads(cairn("log", run, "--json").stdout)["checkpoints"][0]["digest"]
        # The same again; then, told to skip, it goes on as a run that always did.
        again = cairn("resume", run, "--json", check=False)
        assert again.returncode == 1 and json.loads(again.stdout) == dict(report, run=run)
        file = os.path.join(run, "run.yaml")
        settings = open(file).read()
        assert "action: stop" in settings
        with open(file, "w") as out:
            out.write(settings.replace("action: stop", "action: skip"))
        assert "warning" not in cairn("resume", run).stdout
        skipping, _ = train(folder, "skipping", **{**spike, "train.on_spike": {"action": "skip", "window": 4, "factor": 1.05}})
        assert digests(run) == digests(skipping)

        run, done = train(folder, "nonfinite", check=False, **{"optim.lr": 1e6})
        assert done.returncode == 1 and json.loads(done.stdout)["stopped_by"] == "nonfinite" and stored(run) == [json.loads(done.stdout)["step"]]


def test_skipped_updates_resume_bit_for_bit():
    """Finite losses with gradients that are not: a resume must remember the same losses for the rule of spikes."""
    with workspace() as folder:
        changes = {"optim.lr": 1e6, "train.on_nonfinite": "skip", "train.on_spike": {"action": "skip", "window": 2, "factor": 1.01}, "checkpoints.every": 7}
        run, _ = train(folder, **changes)
        expected = digests(run)
        assert any(e["event"] == "nonfinite" for line in journal(run) for e in line.get("events", []))
        for step in (14, 21, 28, 35, 40):
            shutil.rmtree(os.path.join(run, "checkpoints", f"step-{step:08}"))
        again = cairn("resume", run)
        assert "warning" not in again.stdout and digests(run) == expected, again.stdout


def test_a_finished_run_stays_as_it_is():
    with workspace() as folder:
        run, done = train(folder)
        before = open(os.path.join(run, "journal.jsonl"), "rb").read()
        assert json.loads(cairn("resume", run, "--json").stdout) == json.loads(done.stdout)
        assert open(os.path.join(run, "journal.jsonl"), "rb").read() == before
        run, done = train(folder, "minutes", **{"train.steps": None, "train.minutes": 0.005, **CONSTANT})
        assert json.loads(cairn("resume", run, "--json").stdout) == json.loads(done.stdout)


def test_best_and_named_validation_sets():
    with workspace() as folder:
        path = write_text(folder)
        changes = {"data.train": [{"text": path}, {"text": path, "name": "twice", "weight": 2}],
                   "data.validation": [{"text": write_text(folder, "other.txt", seed=3), "name": "other"}],
                   "checkpoints.keep": {"last": 1, "best": True}, "eval.every": 3, "eval.sequences": 8, "optim.lr": 0.3, **CONSTANT}
        run, _ = train(folder, path=path, **changes)
        evaluated = {line["step"]: sum(s["nll"] for s in line["eval"].values()) / 3 for line in journal(run) if "eval" in line}
        assert {5, 10, 15} <= evaluated.keys()  # each checkpoint is measured
        best = min((step for step in evaluated if step % 5 == 0), key=evaluated.get)
        assert stored(run) == sorted({best, 40}), (stored(run), evaluated)


def test_changed_settings_are_named():
    with workspace() as folder:
        run, _ = train(folder, **CONSTANT)
        file = os.path.join(run, "run.yaml")
        settings = open(file).read()
        with open(file, "w") as out:
            out.write(settings.replace("lr: 0.003", "lr: 0.001").replace("steps: 40", "steps: 45"))
        done = cairn("resume", run)
        assert "optim.lr is 0.001 now, was 0.003" in done.stdout and "train.steps is 45 now, was 40" in done.stdout, done.stdout
        assert [line["lr"] for line in journal(run)][38:42] == [0.003, 0.003, 0.001, 0.001]
        changes = json.load(open(os.path.join(run, "build.json")))["changes"]
        assert {"key": "optim.lr", "was": 0.003, "now": 0.001, "after_step": 40} in changes and len(changes) == 2, changes
        assert "changed" not in cairn("resume", run).stdout  # named once
        # What does not fit the stored state is refused.
        for was, now in [("hidden_size: 32", "hidden_size: 64"), ("name: adamw", "name: sgd"), ("precision: float32", "precision: bf16")]:
            with open(file, "w") as out:
                out.write(settings.replace(was, now))
            done = cairn("resume", run, "--json", check=False)
            assert done.returncode == 1 and was.split()[1] in done.stderr and now.split()[1] in done.stderr, done.stderr
        assert stored(run)[-1] == 45 and len(journal(run)) == 45


def with_settings(run, settings):
    """run.yaml of other settings; JSON is YAML."""
    with open(os.path.join(run, "run.yaml"), "w") as file:
        json.dump(settings, file)


def test_a_changed_data_order_is_refused():
    """Where a source stands follows from the settings of the steps before: those stay, or rows are read twice."""
    with workspace() as folder:
        run, _ = train(folder, **{"train.steps": 20, "checkpoints.every": 10, **CONSTANT})
        more = write_text(folder, "more.txt", seed=3)
        show = lambda step: json.loads(cairn("data", "show", f"{run}@{step}", "--json").stdout)
        settings, shown, build = build_of(run)["settings"], show(3), open(os.path.join(run, "build.json")).read()
        commands = {}
        for section, key, was, now in [("train", "batch", "8", 16), ("data", "context", "32", 16), ("data", "mask_documents", "false", True),
                                       ("data", "train", "[text]", settings["data"]["train"] + [{"text": more, "weight": 2.5}]),
                                       ("data", "validation_fraction", "0.1", 0.2), ("seed", "data", "7", 8)]:
            changed = json.loads(json.dumps(settings))
            whole = changed[section]
            if not isinstance(whole, dict):  # one seed for all
                whole = dict.fromkeys(("init", "data", "dropout", "sample"), whole)
            changed[section] = {**whole, key: now}
            changed["train"]["steps"] = 30
            with_settings(run, changed)
            before = {key: now}
            done = cairn("resume", run, "--json", check=False)
            words = [f"run.yaml:1: {section}.{key}: found ", f"was {was}", "steps 1 to 20", "Put it back"]
            words += ["more (weight 2.5)"] if key == "train" else [str(now).lower()]
            assert done.returncode == 2 and all(word in done.stderr for word in words), (before, words, done.stderr)
            if "`" in done.stderr:
                commands[key] = shlex.split(done.stderr.split("`")[1])
            assert open(os.path.join(run, "build.json")).read() == build and stored(run) == [10, 20] and show(3) == shown
        assert sorted(commands) == ["batch", "context", "mask_documents", "train"]
        # What the message says to do instead works, and repeats nothing.
        for key in ("batch", "train"):
            command = commands[key]
            assert command[:5] == ["cairn", "fork", run + "@20", "--run", "NEW"] and command[-1] == "train.steps=30", command
            child = os.path.join(folder, "fork-" + key)
            cairn(*[child if word == "NEW" else word for word in command[1:]], "--json")
            rows = [(s["source"], s["epoch"], s["window"]) for n in range(1, 31)
                    for s in json.loads(cairn("data", "show", f"{child}@{n}", "--json").stdout)["sequences"]]
            assert len(set(rows)) == len(rows) == (20 * 8 + 10 * 16 if key == "batch" else 30 * 8)
        # A later stage may be anything; a text may lie elsewhere.
        moved = os.path.join(folder, "moved.txt")
        os.rename(os.path.join(folder, "text.txt"), moved)
        source = {key: value for key, value in settings["data"]["train"][0].items() if key != "text"}
        later = json.loads(json.dumps(settings))
        later["data"]["train"] = [{**source, "text": moved}]
        later["train"]["steps"] = None
        later["stages"] = [{"name": "before", "steps": 20}, {"name": "after", "steps": 5, "train": {"batch": 16, "micro_batch": 2}}]
        with_settings(run, later)
        cairn("resume", run, "--json")
        assert [line["batch"]["rows"] for line in journal(run)] == [8] * 20 + [16] * 5
        assert show(3) == shown
        # The stage that was made stays, too.
        later["stages"][0]["steps"] = 15
        with_settings(run, later)
        refused(2, "stages.1.train.batch", "found 16 now, was 8", "steps 16 to 25", arguments=["resume", run])


def test_data_are_shown_as_the_step_read_them():
    """A run whose order was changed on the way, which is refused now: each step by the settings that made it."""
    with workspace() as folder:
        run, _ = train(folder, **{"train.steps": 20, **CONSTANT})
        shown = {step: json.loads(cairn("data", "show", f"{run}@{step}", "--json").stdout) for step in (3, 10)}
        build = build_of(run)
        old = json.loads(json.dumps(build["settings"]))
        build["former_settings"] = [{"last_step": 10, "settings": old}]
        build["settings"]["train"]["batch"] = 16
        with open(os.path.join(run, "build.json"), "w") as file:
            json.dump(build, file)
        with_settings(run, build["settings"])
        for step in range(1, 21):
            now = json.loads(cairn("data", "show", f"{run}@{step}", "--json").stdout)
            assert now["rows"] == (8 if step <= 10 else 16) and now == shown.get(step, now), step
            shown[step] = now
        for document in {piece["id"] for step in (2, 15) for s in shown[step]["sequences"] for piece in s["documents"]}:
            seen = json.loads(cairn("data", "where", run, "--doc", document, "--json").stdout)["seen"]
            expected = [(step, s["row"], piece["offset"], piece["tokens"]) for step in sorted(shown) for s in shown[step]["sequences"]
                        for piece in s["documents"] if piece["id"] == document]
            assert sorted((s["step"], s["row"], s["offset"], s["tokens"]) for s in seen) == sorted(expected), document


def test_a_missing_journal_costs_no_checkpoint():
    with workspace() as folder:
        run, _ = train(folder)
        before = stored(run)
        path = os.path.join(run, "journal.jsonl")
        lines = open(path).readlines()
        for kept in (0, 12):
            with open(path, "w") as out:
                out.writelines(lines[:kept])
            refused(1, "journal.jsonl", "step 40", arguments=["resume", run])
        with open(path, "w") as out:
            out.writelines(lines)
        cairn("resume", run)
        assert stored(run) == before


def test_start_from_weights():
    with workspace() as folder:
        first, _ = train(folder)
        path = write_text(folder)
        config = json.load(open(run_file(folder, path)))
        del config["data"]["tokenizer"]
        config["model"] = {"from": "run"}
        file = os.path.join(folder, "from.yaml")
        with open(file, "w") as out:
            json.dump(config, out)
        for n, address in enumerate(["run", "run@last", "run@40", "run/checkpoints/step-00000040"]):
            run = os.path.join(folder, f"from-{n}")
            cairn("train", file, *(["model.from=" + os.path.join(folder, address)] if n else []), "checkpoints.log_spaced=true", "--run", run, "--json")
            # The first loss is that of the weights, far below that of a start from nothing.
            assert journal(run)[0]["loss"] < 3.3 and digests(run) == digests(os.path.join(folder, "from-0"))
            first_weights = [os.path.join(r, "checkpoints", s, "model.safetensors") for r, s in ((first, "step-00000040"), (run, "step-00000000"))]
            assert open(first_weights[0], "rb").read() == open(first_weights[1], "rb").read()
            assert "step-00000040" in open(os.path.join(run, "run.yaml")).read()
        cairn("resume", run)
        refused(1, "41", arguments=["train", file, "model.from=" + folder + "/run@41", "--run", folder + "/no"])
        refused(1, "none", arguments=["train", file, "model.from=none", "--run", folder + "/no"])
        refused(2, "model.from", arguments=["train", file, "model.hidden_size=4", "--run", folder + "/no"])
        refused(2, "context", "64", arguments=["train", file, "data.context=65", "--run", folder + "/no"])


def test_where_and_show():
    with workspace() as folder:
        run, _ = train(folder)
        shown = json.loads(cairn("data", "show", run + "@3", "--json").stdout)
        piece = shown["sequences"][2]["documents"][0]
        where = json.loads(cairn("data", "where", run, "--doc", piece["id"], "--json").stdout)
        assert any(s["step"] == 3 and s["row"] == 2 and s["offset"] == piece["offset"] for s in where["seen"]), (piece, where)
        for address in (run + "@0", run + "@41", run + "@3x", run):
            refused(2, "data show", arguments=["data", "show", address])


def test_ids_that_are_none():
    with workspace() as folder:
        run, _ = train(folder)
        file, out = os.path.join(folder, "ids"), os.path.join(folder, "out")
        for line, part in [("[1,300]", "300"), ("[1,-1]", "-1"), ("", "JSON"), ("[1.5,2]", "JSON"), ("[4294967297,2]", "vocabulary"), ("[true,1]", "JSON"), ("[1,2", "JSON")]:
            with open(file, "w") as given:
                given.write("[1,2]\n" + line + "\n[3,4]\n")
            refused(1, file + ":2:", part, arguments=["eval", run, "--ids", file, "--logprobs", out])
            assert not os.path.exists(out)
        with open(file, "w") as given, open("/dev/full", "w") as full:
            given.write("text " * 20)
            given.flush()
            lost = subprocess.run([CAIRN, "eval", run, "--text", file, "--json"], stdout=full, stderr=subprocess.PIPE)
            assert lost.returncode == 1 and b"standard output" in lost.stderr, lost
        for extra in (["--context", "-3"], ["--stride", "0"], ["--threads", "-1"]):
            refused(2, extra[0], arguments=["eval", run, "--text", file, *extra])


def test_paths():
    with workspace() as folder:
        odd = os.path.join(folder, "a b", "ü 日@2")
        run, _ = train(folder, path=write_text(folder, "a b/té xt.txt"), name="a b/ü 日@2")
        for address in (odd, odd + "@last", odd + "@5"):
            assert "ids" in json.loads(cairn("generate", address, "--prompt", "x", "--max-tokens", 2, "--json").stdout)
        cairn("resume", odd)
        file = os.path.join(folder, "file")
        open(file, "w").close()
        config = run_file(folder, write_text(folder))
        refused(1, file, arguments=["train", config, "--run", file])
        refused(1, file, arguments=["train", config, "--run", file + "/below"])
        refused(2, "run.yaml", arguments=["resume", file])


def test_one_writer():
    with workspace() as folder:
        run = os.path.join(folder, "run")
        config = run_file(folder, write_text(folder), **{"train.steps": 1000000, **CONSTANT, "checkpoints.every": 0})
        process = subprocess.Popen([CAIRN, "train", config, "--run", run, "--json"], stdout=subprocess.PIPE)
        try:
            while not os.path.exists(os.path.join(run, "journal.jsonl")) or len(journal(run)) < 2:
                time.sleep(0.05)
            refused(1, "resume", arguments=["train", config, "--run", run])
            refused(1, f"process {process.pid}", arguments=["resume", run])
        finally:
            process.terminate()
            out, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and json.loads(out)["stopped_by"] == "signal"


def build_of(run):
    with open(os.path.join(run, "build.json")) as file:
        return json.load(file)


def test_a_run_needs_its_origin_for_the_start_alone():
    with workspace() as folder:
        first, _ = train(folder)
        path = write_text(folder)
        config = json.load(open(run_file(folder, path)))
        del config["data"]["tokenizer"]
        config["model"] = {"from": "run"}
        file = os.path.join(folder, "from.yaml")
        with open(file, "w") as out:
            json.dump(config, out)
        run, bare = os.path.join(folder, "with"), os.path.join(folder, "without")
        cairn("train", file, "--run", run, "--json")
        cairn("train", file, "checkpoints.every=0", "checkpoints.at_end=false", "--run", bare, "--json")
        expected = digests(run)
        assert stored(bare) == [] and digests(bare) == expected
        for step in (30, 35, 40):
            shutil.rmtree(os.path.join(run, "checkpoints", f"step-{step:08}"))
        os.rename(first, first + "-moved")
        done = cairn("resume", run)
        assert "step 25" in done.stdout and "warning" not in done.stdout, done.stdout
        assert digests(run) == expected and stored(run)[-1] == 40
        cairn("data", "show", run + "@3")
        cairn("analyze", run, "learning", "--tokens", 64, "--json")
        refused(2, "run.yaml", "model.from", os.path.join(first, "checkpoints", "step-00000040"), "begins again", arguments=["resume", bare])
        os.rename(first + "-moved", first)
        cairn("resume", bare)
        assert digests(bare) == expected


def test_a_changed_validation_set_is_noted():
    with workspace() as folder:
        other = write_text(folder, "other.txt", seed=3)
        changes = {"data.validation": [{"text": other, "name": "other"}], "eval.every": 20, "eval.sequences": 4}
        run, _ = train(folder, **changes)
        build = build_of(run)
        assert [s["name"] for s in build["sources"]] == ["text"] and [s["name"] for s in build["validation"]] == ["other"]
        before = digests(run)
        with open(other, "a") as file:
            file.write(" One more sentence.")
        shutil.rmtree(os.path.join(run, "checkpoints", "step-00000040"))
        done = cairn("resume", run)
        assert "validation set 'other'" in done.stdout and "not comparable" in done.stdout, done.stdout
        assert digests(run) == before
        [change] = build_of(run)["changes"]
        assert change["key"] == "data.validation.other" and change["after_step"] == 35 and change["was"] == build["validation"][0]["digest"]
        assert change["now"] == build_of(run)["validation"][0]["digest"] != change["was"]
        assert "validation" not in cairn("resume", run).stdout  # said once
        assert "data.validation.other" in cairn("log", run).stdout and json.loads(cairn("verify", run, "--json").stdout)["verified"]


def test_a_resume_elsewhere_is_noted():
    with workspace() as folder:
        run, _ = train(folder)
        before = digests(run)
        for step in (35, 40):
            shutil.rmtree(os.path.join(run, "checkpoints", f"step-{step:08}"))
        done = cairn("resume", run, "--threads", "2")
        assert "from step 31 on" in done.stdout and "threads is 2, was 1" in done.stdout and "changes no bit" in done.stdout, done.stdout
        [machine] = build_of(run)["machines"]
        assert machine["after_step"] == 30 and machine["threads"] == 2 and machine["processor"] == build_of(run)["processor"]
        assert digests(run) == before and build_of(run)["resumptions"][0]["after_step"] == 30
        # Another product library setting, from an earlier step on: what was noted beyond it is void.
        for step in (30, 35, 40):
            shutil.rmtree(os.path.join(run, "checkpoints", f"step-{step:08}"))
        done = cairn("resume", run, env={"MKL_CBWR": "COMPATIBLE"})
        assert "from step 26 on" in done.stdout and "mkl_cbwr is COMPATIBLE, was " in done.stdout and "no bit" not in done.stdout, done.stdout
        assert [m["after_step"] for m in build_of(run)["machines"]] == [25]
        log = json.loads(cairn("log", run, "--json").stdout)
        assert log["machines"] == build_of(run)["machines"] and [r["after_step"] for r in log["resumptions"]] == [30, 25], log
        assert log["unverified"][0]["from"] == 26 and "mkl_cbwr" in log["unverified"][0]["why"]
        assert "machine" in cairn("log", run).stdout


def test_interrupted_before_the_first_step():
    """SIGINT at any moment of the start: nothing torn; where the state stood already, it is stored and the exit is 0."""
    with workspace() as folder:
        path = write_text(folder)
        config = run_file(folder, path, **{"train.steps": 6, **CONSTANT})
        whole = os.path.join(folder, "whole")
        cairn("train", config, "--run", whole, "--json")
        ends = {}
        begin = time.time()
        cairn("train", config, "--run", os.path.join(folder, "timed"), "--json")
        span = time.time() - begin
        for n in range(12):
            run = os.path.join(folder, f"run-{n}")
            process = subprocess.Popen([CAIRN, "train", config, "--run", run, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            time.sleep(span * n / 14)
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=60)
            ends.setdefault(process.returncode, []).append(n)
            if process.returncode == 0:
                report = json.loads(out)
                assert stored(run)[-1] == report["step"] or report["stopped_by"] == "end", (report, stored(run))
                assert report["stopped_by"] in ("signal", "end") and json.loads(cairn("verify", run, "--json").stdout)["verified"]
                cairn("resume", run)
            else:
                over = out and json.loads(out)["stopped_by"] == "end"  # done, and hit on its way out
                assert process.returncode == -signal.SIGINT and (over or out == "") and not errors, (process.returncode, out, errors)
                started = os.path.exists(os.path.join(run, "run.yaml"))
                cairn(*(["resume", run] if started else ["train", config, "--run", run]))
            assert digests(run) == digests(whole), n
        assert set(ends) == {0, -signal.SIGINT}, ends
        # A first step that takes long: the state before it is stored, or the one after it.
        run = os.path.join(folder, "slow")
        slow = run_file(folder, path, **{"train.steps": 6, "train.batch": 1024, "train.micro_batch": 4, "checkpoints.every": 0, **CONSTANT})
        process = subprocess.Popen([CAIRN, "train", slow, "--run", run], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not os.path.exists(os.path.join(run, "run.yaml")):
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0 and "stopped by signal" in out and stored(run)[-1] in (0, 1), (process.returncode, out, errors)
        assert len(journal(run)) == stored(run)[-1]


def test_checkpoints_beyond_the_end_are_said():
    with workspace() as folder:
        _, done = train(folder, **{"checkpoints.at": [7, 400, 500]})
        assert "checkpoints.at" in done.stderr and "400, 500" in done.stderr and "(40)" in done.stderr, done.stderr
        _, done = train(folder, "fine", **{"checkpoints.at": [7, 40]})
        assert done.stderr == "", done.stderr


def test_a_text_that_is_not_there():
    with workspace() as folder:
        file = run_file(folder, "/nowhere/text.txt")
        refused(2, file + ":1: data.train.0.text: found '/nowhere/text.txt'", arguments=["train", file, "--run", folder + "/no"])
        run, _ = train(folder, path=write_text(folder))
        os.remove(os.path.join(folder, "text.txt"))
        refused(2, "run.yaml:", "data.train.0.text", "text.txt", arguments=["resume", run])
        for verb in (["log", run], ["verify", run], ["generate", run, "--prompt", "x", "--max-tokens", 2]):
            cairn(*verb)  # the text is not needed


def test_nobody_reads():
    """Whoever read the output is gone: a run goes on, other verbs end quietly."""
    with workspace() as folder:
        path = write_text(folder)
        config = run_file(folder, path, **{"train.log_every": 1, **CONSTANT})
        for n, options in enumerate(([], ["--json"])):
            run = os.path.join(folder, f"run-{n}")
            process = subprocess.Popen([CAIRN, "train", config, "--run", run, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            process.stdout.close()
            assert process.wait(timeout=60) == 0 and len(journal(run)) == 40 and stored(run)[-1] == 40, process.stderr.read()
        for verb in (["log", run, "--json"], ["models"], ["verify", run], ["data", "show", run + "@1", "--text"]):
            process = subprocess.Popen([CAIRN, *verb], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            process.stdout.close()
            _, errors = process.wait(timeout=60), process.stderr.read()
            assert process.returncode == 1 and errors == b"", (verb, process.returncode, errors)


def test_keys_of_a_run_file():
    keys = {k["key"]: k for k in json.loads(cairn("train", "--keys", "--json").stdout)}
    assert keys["optim.lr"] == {"key": "optim.lr", "default": "0.001", "allowed": "a number above 0", "doc": "peak learning rate"}
    shown = cairn("train", "--keys").stdout
    assert all(key in shown for key in keys) and len(shown.splitlines()) >= len(keys)
    assert "--keys" in cairn("train", "--help").stdout
    refused(2, "no run file", arguments=["train"])


if __name__ == "__main__":
    main([test_changed_data_stops_a_resume, test_a_changed_data_order_is_refused, test_data_are_shown_as_the_step_read_them, test_a_run_that_stops_itself_keeps_the_state_before, test_skipped_updates_resume_bit_for_bit,
          test_a_finished_run_stays_as_it_is, test_best_and_named_validation_sets, test_changed_settings_are_named,
          test_a_missing_journal_costs_no_checkpoint, test_start_from_weights, test_where_and_show, test_ids_that_are_none, test_paths,
          test_one_writer, test_a_run_needs_its_origin_for_the_start_alone, test_a_changed_validation_set_is_noted, test_a_resume_elsewhere_is_noted,
          test_interrupted_before_the_first_step, test_checkpoints_beyond_the_end_are_said, test_a_text_that_is_not_there, test_nobody_reads,
          test_keys_of_a_run_file])
