"""A small hybrid of linear and full attention as a user trains it: the same digests on any threads, replayed, resumed, generated from."""
# labels: 
import json
import os
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness import cairn, digests, main, run_file, text, workspace

HYBRID = {
    "model.model_type": "qwen3_next", "model.num_hidden_layers": 4, "model.head_dim": 16, "model.num_experts": 0,
    "model.linear_num_key_heads": 2, "model.linear_num_value_heads": 4, "model.linear_key_head_dim": 12, "model.linear_value_head_dim": 8,
    # More than a chunk of the delta rule, and documents that begin inside it.
    "model.max_position_embeddings": 256, "data.context": 150, "train.steps": 20, "optim.schedule.decay": 4,
}


def train(folder, name, **changes):
    path, run = os.path.join(folder, "text.txt"), os.path.join(folder, name)
    with open(path, "w") as file:
        file.write(text())
    cairn("train", run_file(folder, path, **{**HYBRID, **changes}), "--run", run, "--json")
    return run


def test_bits_depend_neither_on_threads_nor_on_stops():
    with workspace() as folder:
        run = train(folder, "one")
        two = train(folder, "two", **{"train.threads": 2})
        assert digests(two) == digests(run)
        for arguments in [("--threads", 2), ("--from", 7, "--to", 13), ("--jobs", 2)]:
            report = json.loads(cairn("replay", run, *arguments, "--json").stdout.splitlines()[-1])
            assert report["verified"] and report["first_divergence"] is None and report["replayed"] > 0 and report["compared"] > 0, report
        fork = os.path.join(folder, "fork")
        cairn("fork", run + "@7", "--run", fork, "--json")
        cairn("resume", fork)
        assert {step: digest for step, digest in digests(run).items() if step > 7} == {s: d for s, d in digests(fork).items() if s > 7}


def test_activation_checkpointing_and_muon():
    with workspace() as folder:
        run = train(folder, "plain")
        again = train(folder, "again", **{"train.activation_checkpointing": True})
        assert digests(again) == digests(run)
        muon = train(folder, "muon", **{"optim.name": "muon", "optim.lr": 0.01})
        report = json.loads(cairn("replay", muon, "--json").stdout.splitlines()[-1])
        assert report["verified"], report


def test_generates_what_transformers_generates():
    with workspace() as folder:
        run = train(folder, "run")
        checkpoint = os.path.join(run, "checkpoints", "step-00000020")
        model = AutoModelForCausalLM.from_pretrained(checkpoint).float().eval()
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        # A prompt of several chunks through the cache, then token by token.
        words = text(seed=3)[:170]
        prompt = tokenizer(words, return_tensors="pt")["input_ids"]
        reply = json.loads(cairn("generate", run, "--prompt", words, "--max-tokens", 24, "--temperature", 0, "--json").stdout)
        greedy = model.generate(prompt, max_new_tokens=24, do_sample=False)[0, prompt.shape[1]:].tolist()
        assert len(reply["ids"]) > 4 and reply["ids"] == greedy[:len(reply["ids"])], (reply, greedy)
        with torch.no_grad():
            ids = torch.cat([prompt[0], torch.tensor(reply["ids"])])
            logprobs = model(ids[None]).logits[0].log_softmax(-1)[prompt.shape[1] - 1:-1]
        expected = logprobs.gather(1, torch.tensor(reply["ids"])[:, None])[:, 0]
        assert torch.allclose(torch.tensor(reply["logprobs"]), expected, atol=2e-5), (reply["logprobs"], expected)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    main([test_bits_depend_neither_on_threads_nor_on_stops, test_activation_checkpointing_and_muon, test_generates_what_transformers_generates])
