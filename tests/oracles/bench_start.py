"""How long a user waits: for the program, for the launcher before it, for the first finished step of a 4m model.

usage: .venv/bin/python tests/oracles/bench_start.py [--repeat 9]
"""
import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
PROGRAM, LAUNCHER = os.path.join(ROOT, "build", "bin", "cairn"), os.path.join(ROOT, "cairn")


def seconds(*command):
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def first_step(file, run):
    """Until the journal has its first line: the step is done then, and its digest made."""
    journal = os.path.join(run, "journal.jsonl")
    start = time.perf_counter()
    process = subprocess.Popen([LAUNCHER, "train", file, "--run", run], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (os.path.exists(journal) and os.path.getsize(journal)):
        time.sleep(0.002)
        assert process.poll() in (None, 0)
    took = time.perf_counter() - start
    assert process.wait() == 0
    return took


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=9)
    repeat = parser.parse_args().repeat
    seconds(LAUNCHER, "models")  # builds where something changed
    alone, launched = [], []
    for _ in range(repeat):
        alone.append(seconds(PROGRAM, "models"))
        launched.append(seconds(LAUNCHER, "models"))
    steps = []
    with tempfile.TemporaryDirectory() as folder:
        text, file = os.path.join(folder, "text.txt"), os.path.join(folder, "run.yaml")
        with open(text, "w") as out:
            out.write("<|endoftext|>".join("".join(chr(97 + (i * k * k) % 26) for i in range(400)) for k in range(1, 400)))
        with open(file, "w") as out:  # the sizes and the batch of `cairn bench train --size 4m`; JSON is YAML
            json.dump({"objective": "pretrain", "seed": 1,
                       "model": {"model_type": "llama", "hidden_size": 256, "intermediate_size": 688,
                                 "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4,
                                 "max_position_embeddings": 256, "tie_word_embeddings": True},
                       "data": {"train": [{"text": text}], "tokenizer": {"bytes": True}, "context": 256,
                                "cache": os.path.join(folder, "cache")},
                       "optim": {"name": "adamw", "lr": 0.001},
                       "train": {"steps": 1, "batch": 8, "micro_batch": 8, "lanes": 1},
                       "checkpoints": {"every": 0, "at_end": False}}, out)
        first_step(file, os.path.join(folder, "first"))  # prepares the data
        for k in range(repeat):
            steps.append(first_step(file, os.path.join(folder, f"run{k}")))
    start, through, step = map(statistics.median, (alone, launched, steps))
    print(f"program {start:.2f} s; the launcher adds {through - start:.3f} s; command to first finished step, 4m: {step:.2f} s "
          f"(medians of {repeat})")


main()
