"""What a user does on an ordinary day: his own text, the ends of a run, chat, a dry run, TensorBoard, benchmarks."""
import json
import os
import re

from harness import cairn, digests, journal, main, run_file, text, workspace

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CONSTANT = {"optim.schedule.name": "constant", "optim.schedule.decay": None, "optim.schedule.warmup": 0}
FAMILIES = ["gpt2", "gpt_neox", "llama", "qwen2", "qwen3", "mistral", "gemma3_text", "olmo2", "olmo3", "smollm3", "mixtral",
            "qwen3_moe", "glm4_moe", "gpt_oss", "deepseek_v3", "deepseek_v32", "glm_moe_dsa", "qwen3_next", "llama_dsa", "qwen3_dsa"]


def write_text(folder, name="text.txt", **options):
    path = os.path.join(folder, name)
    with open(path, "w") as file:
        file.write(text(**options))
    return path


def train(folder, name="run", check=True, **changes):
    run = os.path.join(folder, name)
    done = cairn("train", run_file(folder, write_text(folder), **changes), "--run", run, "--json", check=check)
    return run, done


def stored(run):
    return [c["step"] for c in json.loads(cairn("log", run, "--json").stdout)["checkpoints"]]


def test_readme_own_text():
    """README's command on one plain file that nothing divides into documents; few steps."""
    with workspace() as folder:
        path = os.path.join(folder, "my.txt")
        with open(path, "w") as file:
            file.write(text(documents=120).replace("<|endoftext|>", "\n"))
        run = os.path.join(folder, "mine")
        few = ["train.steps=2", "train.batch=4", "train.micro_batch=1", "optim.schedule.warmup=1", "optim.schedule.decay=1",
               "data.context=64", "data.cache=" + folder + "/cache", "checkpoints.log_spaced=false"]
        command = ["train", os.path.join(ROOT, "configs/pretrain/quickstart.yaml"), "data.train.0.text=" + path]
        assert "./cairn train configs/pretrain/quickstart.yaml data.train.0.text=my.txt" in open(os.path.join(ROOT, "README.md")).read()
        done = cairn(*command, *few, "--run", run, "--json")
        assert json.loads(done.stdout)["step"] == 2, done.stdout
        evaluated = journal(run)[-1]["eval"]["validation"]
        source = json.load(open(os.path.join(run, "build.json")))["sources"][0]
        # The end of the text is held out: no step reads it.
        size = source["tokens"]
        train_tokens = json.loads(cairn(*command, *few, "--dry-run", "--json").stdout)["train_tokens"]
        assert evaluated["nll"] > 0 and source["documents"] == 1 and train_tokens == size - size * 2 // 100, (source, train_tokens)
        seen = json.loads(cairn("data", "where", run, "--doc", "0", "--json").stdout)["seen"]
        assert seen and max(s["offset"] + s["tokens"] for s in seen) <= train_tokens, (seen, train_tokens)


def test_the_console_shows_progress():
    """Loss, tokens/s, share of the peak, time left, samples: the numbers of the journal, on lines of their own where nobody watches."""
    with workspace() as folder:
        run = os.path.join(folder, "run")
        file = run_file(folder, write_text(folder), **{"train.steps": 20, "train.log_every": 5, "eval.every": 10,
                                                       "train.sample": {"every": 10, "prompt": "The people", "tokens": 8, "temperature": 0.8}})
        said = cairn("train", file, "--run", run).stdout
        assert "\r" not in said, said
        lines = re.findall(r"^step +(\d+)/20  loss ([\d.]+)  grad ([\d.]+)  lr (\S+) +([\d,]+) tok/s +(\d+)% of peak  ETA (\S.*)$", said, re.M)
        assert [int(line[0]) for line in lines] == [1, 5, 10, 15, 20], said
        of_step = {line["step"]: line for line in journal(run)}
        for step, loss, grad, lr, rate, peak, left in lines:
            line = of_step[int(step)]
            assert abs(float(loss) - line["loss"]) < 6e-5 and abs(float(lr) - line["lr"]) < 0.006 * line["lr"] + 1e-12, (step, loss, line)
            assert abs(float(grad) - line["grad_norm"]) < 6e-4 and int(rate.replace(",", "")) > 0 and int(peak) <= 100, (step, rate, peak)
        assert lines[-1][-1] == "0s", lines
        samples = [json.loads(line) for line in open(os.path.join(run, "samples.jsonl"))]
        assert [sample["step"] for sample in samples] == [10, 20]
        for sample in samples:
            assert "  sample: The people" + sample["text"] + "\n" in said, (sample, said)
        for line in of_step.values():
            if "eval" in line:
                assert f"validation: {line['eval']['validation']['nll']:.4f} nats a token" in said, said
        assert re.search(r"^done at step 20: loss .* checkpoints, the last is ", said, re.M), said


def test_settings_without_effect_are_said():
    with workspace() as folder:
        few = {"train.steps": 2, **CONSTANT}
        for changes, said in [({"optim.momentum": 0.5}, "optim.momentum: has no effect: it is a setting of muon and sgd, and the optimizer is adamw"),
                              ({"optim.name": "sgd", "optim.betas": [0.8, 0.9]}, "optim.betas: has no effect"),
                              ({"optim.ns_steps": 3}, "optim.ns_steps: has no effect: it is a setting of muon,"),
                              ({"indexer": {"lr": 0.1, "mode": "dense"}, "model.model_type": "llama_dsa", "model.index_topk": 8, "model.index_n_heads": 2,
                                "model.index_head_dim": 8}, "indexer.lr: has no effect: the indexer learns in no stage"),
                              ({"optim.name": "muon", "optim.momentum": 0.5, "optim.betas": [0.8, 0.9]}, None)]:
            run, done = train(folder, f"run{abs(hash(str(changes)))}", **few, **changes)
            assert said in done.stderr if said else "no effect" not in done.stderr, (changes, done.stderr)
            # run.yaml names every default, which is no setting of anybody's.
            again = cairn("train", os.path.join(run, "run.yaml"), "--run", run + "-again", "--json")
            assert again.stderr.count("no effect") == done.stderr.count("no effect"), again.stderr


def test_a_prompt_beyond_the_context_is_refused_at_the_start():
    with workspace() as folder:
        sample = {"every": 5, "prompt": "x" * 64}
        run, done = train(folder, check=False, **{"train.sample": sample})
        assert done.returncode == 2 and "train.sample.prompt: found 64 tokens" in done.stderr and ".yaml:1:" in done.stderr, done.stderr
        assert not os.path.exists(os.path.join(run, "journal.jsonl"))
        _, done = train(folder, "fits", **{"train.sample": {**sample, "prompt": "x" * 63}, "train.steps": 5, **CONSTANT})


def test_a_tokenizer_without_an_end_of_text_is_said():
    with workspace() as folder:
        vocabulary = {chr(n): n - 32 for n in range(32, 127)} | {"\n": 95}
        path = os.path.join(folder, "tokenizer.json")
        with open(path, "w") as file:
            json.dump({"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None,
                       "decoder": {"type": "Fuse"}, "model": {"type": "BPE", "vocab": vocabulary, "merges": []}}, file)
        _, done = train(folder, **{"data.tokenizer": {"file": path}, "train.steps": 2, **CONSTANT})
        assert "data.tokenizer.file: the tokenizer has no end-of-text token" in done.stderr, done.stderr
        _, done = train(folder, "bytes", **{"train.steps": 2, **CONSTANT})
        assert done.stderr == "", done.stderr


def test_folders_of_json_lines():
    with workspace() as folder:
        lines = os.path.join(folder, "lines")
        os.makedirs(os.path.join(lines, "deeper"))
        for n, name in enumerate(["part-1.jsonl", "part-2.jsonl", "deeper/part-3.jsonl"]):
            with open(os.path.join(lines, name), "w") as file:
                file.write("".join(json.dumps({"text": part}) + "\n" for part in text(documents=5, seed=n).split("<|endoftext|>")))
        tokenizer = os.path.join(folder, "tokenizer")
        made = json.loads(cairn("tokenizer", "train", lines, "--vocab-size", 300, "--out", tokenizer, "--json").stdout)
        assert made["documents"] == 15 and made["vocab_size"] == 300, made
        prepare = ["data", "prepare", "--tokenizer", tokenizer, "--json"]
        (done,) = json.loads(cairn(*prepare, lines, "--out", folder + "/a").stdout)
        assert done["documents"] == 15 and done["source"] == "lines", done
        # A set in a glob; a name; documents between separators.
        (done,) = json.loads(cairn(*prepare, lines + "/part-[13].jsonl", "--name", "first", "--out", folder + "/b").stdout)
        assert done["documents"] == 5 and done["source"] == "first", done
        plain = os.path.join(folder, "plain.txt")
        with open(plain, "w") as file:
            file.write("one\n--\ntwo\n--\nthree")
        (done,) = json.loads(cairn(*prepare, plain, "--separator", "\n--\n", "--out", folder + "/c").stdout)
        assert done["documents"] == 3, done
        for arguments, part in [([lines, "--separator", "x"], "separator"), ([lines, plain, "--name", "one"], "--name")]:
            wrong = cairn(*prepare, *arguments, "--out", folder + "/d", check=False)
            assert wrong.returncode == 2 and part in wrong.stderr, wrong.stderr
        with open(os.path.join(lines, "more.txt"), "w") as file:
            file.write("text")
        wrong = cairn(*prepare, lines, "--out", folder + "/d", check=False)
        assert wrong.returncode != 0 and "both" in wrong.stderr, wrong.stderr


def test_ends_of_a_run():
    with workspace() as folder:
        run, done = train(folder, **{"train.steps": None, "train.tokens": 1000, **CONSTANT})
        report = json.loads(done.stdout)
        assert report["step"] == -(-1000 // (8 * 32)) and report["stopped_by"] == "end" and journal(run)[-1]["tokens"] >= 1000, report
        run, done = train(folder, "epochs", **{"train.steps": None, "train.epochs": 0.05, **CONSTANT})
        tokens = json.loads(cairn("train", os.path.join(run, "run.yaml"), "--dry-run", "--json").stdout)["train_tokens"]
        assert json.loads(done.stdout)["step"] == -(-(0.05 * ((tokens - 1) // 32)) // 8), (done.stdout, tokens)
        # On the way to that end each window is read at most once.
        windows = [(s["source"], s["window"]) for n in range(1, len(journal(run)) + 1)
                   for s in json.loads(cairn("data", "show", f"{run}@{n}", "--json").stdout)["sequences"]]
        assert len(set(windows)) == len(windows), len(windows)


def test_events_are_stored():
    with workspace() as folder:
        spikes = {"optim.lr": 1, "train.on_spike": {"action": "skip", "window": 4, "factor": 1.05}, "checkpoints.every": 0,
                  "checkpoints.at_end": False, "train.steps": 20, **CONSTANT}
        run, _ = train(folder, **spikes, **{"checkpoints.on_event": True})
        events = [line["step"] for line in journal(run) if "events" in line]
        assert events and stored(run) == events, (events, stored(run))
        quiet, _ = train(folder, "quiet", **spikes)
        assert stored(quiet) == [] and digests(quiet) == digests(run)


def test_chat_and_generate():
    with workspace() as folder:
        run, _ = train(folder, **{"train.steps": 5, **CONSTANT})
        done = cairn("chat", run, "--plain", "--max-tokens", 6, "--temperature", 0, input="The people\nsaid\n\nnot read\n")
        assert done.stdout.count("> ") == 3 and len(done.stdout.splitlines()) >= 4, done.stdout
        again = cairn("chat", run, "--plain", "--max-tokens", 6, "--temperature", 0, input="The people\nsaid\n")  # ends with the pipe
        assert again.stdout.startswith(done.stdout.rstrip("\n").removesuffix("> ")), (done.stdout, again.stdout)
        # What the model's folder calls the end of a text ends it: a list, one id, and config.json where there is no other.
        model = os.path.join(run, "checkpoints", "step-00000005")
        generate = ["generate", model, "--prompt", "The ", "--max-tokens", 12, "--temperature", 0, "--json"]
        free = json.loads(cairn(*generate).stdout)
        assert free["finish_reason"] == "length" and len(free["ids"]) == 12, free
        end = free["ids"][-1]
        expected = free["ids"][:free["ids"].index(end)]
        for name, value in [("generation_config.json", [999, end]), ("generation_config.json", end), ("config.json", [end])]:
            path = os.path.join(model, name)
            config = json.load(open(path))
            config["eos_token_id"] = value
            with open(path, "w") as file:
                json.dump(config, file)
            if name == "config.json":
                os.remove(os.path.join(model, "generation_config.json"))
            got = json.loads(cairn(*generate).stdout)
            assert got["finish_reason"] == "eos" and got["ids"] == expected, (name, value, got)


def test_models():
    assert all(family in cairn("models").stdout for family in FAMILIES)
    listed = json.loads(cairn("models", "--json").stdout)
    names = {m["model_type"] for m in listed}
    assert names == set(FAMILIES), listed


def test_dry_run():
    with workspace() as folder:
        file = run_file(folder, write_text(folder))
        run = os.path.join(folder, "run")
        planned = json.loads(cairn("train", file, "--run", run, "--dry-run", "--json").stdout)
        assert not os.path.exists(run)
        assert planned["steps"] == 40 and planned["tokens_per_step"] == 8 * 32 and planned["checkpoints"] == 8, planned
        cairn("train", file, "--run", run, "--json")
        weights = os.path.getsize(os.path.join(run, "checkpoints", "step-00000040", "model.safetensors"))
        assert 0.9 * weights < 4 * planned["parameters"] <= weights, (planned, weights)
        (source,) = json.load(open(os.path.join(run, "build.json")))["sources"]
        assert 0.7 * source["tokens"] < planned["train_tokens"] < source["tokens"] and len(stored(run)) == planned["checkpoints"]
        assert "parameters" in cairn("train", file, "--dry-run").stdout


def test_sgd_in_bf16_resumes():
    with workspace() as folder:
        changes = {"optim.name": "sgd", "optim.lr": 0.1, "optim.weight_decay": 0.0, "train.precision": "bf16", "train.steps": 16, **CONSTANT}
        whole, _ = train(folder, "whole", **changes)
        assert journal(whole)[-1]["loss"] < journal(whole)[0]["loss"]
        # As if it had been killed after step 12, with the checkpoint of step 10 as its last.
        broken, _ = train(folder, "broken", **changes)
        for step in (15, 16):
            name = os.path.join(broken, "checkpoints", f"step-{step:08}")
            os.rename(name, os.path.join(folder, f"away-{step}"))
        path = os.path.join(broken, "journal.jsonl")
        lines = open(path).readlines()
        with open(path, "w") as file:
            file.writelines(lines[:12])
        done = cairn("resume", broken)
        assert "step 10" in done.stdout and digests(broken) == digests(whole), done.stdout


def test_tensorboard_of_a_run():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    with workspace() as folder:
        run, _ = train(folder, **{"eval.every": 10, "train.steps": 20, **CONSTANT})
        page = EventAccumulator(os.path.join(run, "tensorboard"))
        page.Reload()
        lines = journal(run)
        for key in ("loss", "grad_norm", "lr"):
            values = {s.step: s.value for s in page.Scalars("train/" + key)}
            assert sorted(values) == list(range(1, 21)), (key, values)
            assert all(abs(values[line["step"]] - line[key]) <= 1e-6 * abs(line[key]) for line in lines), key
        evaluated = {s.step: s.value for s in page.Scalars("eval/validation/nll")}
        assert sorted(evaluated) == [10, 20] and abs(evaluated[20] - lines[-1]["eval"]["validation"]["nll"]) < 1e-5, evaluated


def test_bench_train():
    report = json.loads(cairn("bench", "train", "--size", "4m", "--steps", 1, "--json").stdout)
    assert report["tokens_per_s"] > 0 and report["params"] > 3e6 and report["loss"] > 0, report


if __name__ == "__main__":
    main([test_readme_own_text, test_the_console_shows_progress, test_settings_without_effect_are_said, test_a_prompt_beyond_the_context_is_refused_at_the_start, test_a_tokenizer_without_an_end_of_text_is_said,
          test_folders_of_json_lines, test_ends_of_a_run, test_events_are_stored, test_chat_and_generate, test_models, test_dry_run,
          test_sgd_in_bf16_resumes, test_tensorboard_of_a_run, test_bench_train])
