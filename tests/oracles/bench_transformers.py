"""The training step of transformers' Llama on random tokens, for comparison with `cairn bench train` in the same minute.

usage: .venv/bin/python tests/oracles/bench_transformers.py 4m|14m|135m [--compile] [--steps N] [--threads N]
"""
import argparse
import json
import resource
import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

# hidden, layers, heads, kv heads, feed-forward, vocabulary, sequences, context: the sizes of trainer/bench/sizes.h
SHAPES = {"4m": (256, 6, 8, 4, 688, 256, 8, 256), "14m": (384, 6, 6, 6, 1024, 8192, 8, 256), "135m": (576, 30, 9, 3, 1536, 49152, 2, 256)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("size", choices=SHAPES)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    hidden, layers, heads, kv_heads, ffn, vocabulary, rows, context = SHAPES[options.size]
    config = LlamaConfig(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
                         intermediate_size=ffn, vocab_size=vocabulary, max_position_embeddings=context, tie_word_embeddings=True)
    model = LlamaForCausalLM(config)
    run = torch.compile(model) if options.compile else model
    adamw = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    ids = torch.randint(0, vocabulary, (rows, context))
    seconds = []
    for _ in range(3 + options.steps):
        start = time.perf_counter()
        run(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"peer": "transformers", "compile": options.compile, "size": options.size,
                      "tokens_per_s": rows * context / statistics.median(seconds[3:]),
                      "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


if __name__ == "__main__":
    main()
