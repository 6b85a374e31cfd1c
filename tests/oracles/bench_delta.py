"""Gated DeltaNet, forward and backward, beside transformers' Qwen3-Next without its GPU kernels, in turns.

The layer alone and a model of four such layers (a quarter of Qwen3-Next's width; trainer/bench/delta.cpp builds the same).

usage: .venv/bin/python tests/oracles/bench_delta.py build/bin/cairn [--tokens 1024] [--rounds N] [--threads N]
"""
import argparse
import json
import os
import statistics
import subprocess
import time

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM  # noqa: E402


def median_rate(step, tokens, repeat):
    seconds = []
    for _ in range(2 + repeat):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return tokens / statistics.median(seconds[2:])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("cairn")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = Qwen3NextForCausalLM(Qwen3NextConfig(
        vocab_size=4096, hidden_size=512, intermediate_size=1408, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=128, linear_num_key_heads=4, linear_num_value_heads=8, linear_key_head_dim=128, linear_value_head_dim=128, num_experts=0,
        layer_types=["linear_attention"] * 4, tie_word_embeddings=True))
    layer = model.model.layers[0].linear_attn
    ids = torch.randint(0, 4096, (1, options.tokens))

    def layer_step():
        x = torch.randn(1, options.tokens, 512, requires_grad=True)
        y = layer(x)
        y.backward(y.detach())

    def model_step():
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    seen = {}
    for _ in range(options.rounds):
        theirs = {"layer": median_rate(layer_step, options.tokens, options.repeat), "model": median_rate(model_step, options.tokens, options.repeat)}
        done = subprocess.run([options.cairn, "bench", "delta", "--tokens", str(options.tokens), "--rounds", str(4 * options.repeat),
                               "--threads", str(options.threads), "--json"], capture_output=True, text=True, check=True)
        ours = json.loads(done.stdout)
        for what, rate in theirs.items():
            seen.setdefault(what, []).append((ours[f"{what}_tokens_per_s_at_{options.tokens}"], rate))
    for what, pairs in seen.items():
        print(json.dumps({"what": what, "tokens": options.tokens, "threads": options.threads,
                          "cairn_tokens_per_s": statistics.median(a for a, _ in pairs),
                          "transformers_tokens_per_s": statistics.median(b for _, b in pairs),
                          "ratio": statistics.median(a / b for a, b in pairs)}))


if __name__ == "__main__":
    main()
