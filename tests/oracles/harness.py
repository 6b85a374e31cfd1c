"""What the end-to-end tests share: a text, small run files, and the program."""
import json
import os
import random
import subprocess
import sys
import tempfile

CAIRN = sys.argv[1] if len(sys.argv) > 1 else "build/bin/cairn"

WORDS = """the a of and to in is that it was for on are as with his they at be this have from or one had by word but not
what all were we when your can said there use an each which she do how their if will up other about out many then them
these so some her would make like him into time has look two more write go see number no way could people""".split()


def text(documents=60, seed=0):
    """English-looking sentences with enough structure to be learnt."""
    draw = random.Random(seed)
    parts = []
    for _ in range(documents):
        sentences = [" ".join(draw.choices(WORDS, weights=range(len(WORDS), 0, -1), k=draw.randint(4, 12))).capitalize() + "."
                     for _ in range(draw.randint(5, 25))]
        parts.append(" ".join(sentences))
    return "<|endoftext|>".join(parts)


def run_file(folder, text_path, **changes):
    """A run file for a very small Llama; `changes` are dotted keys."""
    settings = {
        "seed": 7,
        "model.model_type": "llama", "model.hidden_size": 32, "model.intermediate_size": 48, "model.num_hidden_layers": 2,
        "model.num_attention_heads": 4, "model.num_key_value_heads": 2, "model.max_position_embeddings": 64,
        "model.tie_word_embeddings": True,
        "data.train": [{"text": text_path}], "data.validation_fraction": 0.1, "data.tokenizer.bytes": True, "data.context": 32,
        "data.cache": os.path.join(folder, "cache"),
        "optim.name": "adamw", "optim.lr": 0.003, "optim.schedule.name": "wsd", "optim.schedule.warmup": 4,
        "optim.schedule.decay": 8,
        "train.steps": 40, "train.batch": 8, "train.micro_batch": 2, "train.lanes": 4, "train.threads": 1,
        "checkpoints.every": 5, "checkpoints.at_end": True,
    }
    settings.update(changes)
    tree = {"objective": "pretrain"}
    for key, value in settings.items():
        if key.startswith("model.") and value is None:
            continue
        node = tree
        *path, last = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    path = os.path.join(folder, f"run-{abs(hash(json.dumps(settings, sort_keys=True)))}.yaml")
    with open(path, "w") as file:
        json.dump(tree, file)  # JSON is YAML
    return path


def cairn(*arguments, check=True, env=None, **options):
    """Runs the program; returns the finished process with its output as text."""
    done = subprocess.run([CAIRN, *map(str, arguments)], capture_output=True, text=True, env={**os.environ, **(env or {})}, **options)
    if check and done.returncode != 0:
        raise AssertionError(f"cairn {' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def journal(run):
    with open(os.path.join(run, "journal.jsonl")) as file:
        return [json.loads(line) for line in file]


def digests(run):
    return {line["step"]: line["digest"] for line in journal(run)}


def workspace():
    return tempfile.TemporaryDirectory(prefix="cairn-test-")


def main(tests):
    """Runs functions named by a list or given on the command line after the program."""
    wanted = sys.argv[2:]
    failed = []
    for test in tests:
        if wanted and test.__name__ not in wanted:
            continue
        try:
            test()
            print(f"ok    {test.__name__}", flush=True)
        except Exception as error:  # noqa: BLE001: every failure is reported, then the next test runs
            failed.append(test.__name__)
            print(f"FAIL  {test.__name__}: {type(error).__name__}: {error}", flush=True)
    sys.exit(1 if failed else 0)
