# labels: quick
"""safetensors both ways: the official library reads what Cairn writes, Cairn reads what it writes, and both give the same
verdict on hundreds of malformed files. The digests of what Cairn read are computed here by the lines of FORMATS.md."""
import json
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
program = Path(sys.argv[1]).with_name("test_checkpoints") if len(sys.argv) > 1 else ROOT / "build/bin/test_checkpoints"
try:
    import numpy as np
    import safetensors
    import torch
    from safetensors.numpy import save_file as save_numpy
    from safetensors.torch import load_file, save_file
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)
if not program.exists():
    print(f"skipped: {program} is not built")
    sys.exit(77)

lines = re.search(r"```python\n(# digest.*?)```", (ROOT / "checkpoints/FORMATS.md").read_text(), re.S)
exec(lines.group(1))  # digest_hex(name, array)


def cairn(test, folder):
    run = subprocess.run([program, "--gtest_also_run_disabled_tests", f"--gtest_filter=SafetensorsExchange.DISABLED_{test}"],
                         env=dict(os.environ, CAIRN_EXCHANGE=str(folder)), capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def bits(t):
    t = t.contiguous().reshape(-1)
    return t.view(torch.uint8).numpy().view({1: "u1", 2: "u2", 4: "u4", 8: "u8"}[t.element_size()])


NAMES = {torch.bool: "BOOL", torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16",
         torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
         torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64", torch.float8_e4m3fn: "F8_E4M3",
         torch.float8_e5m2: "F8_E5M2"}


def same(tensors, described):
    assert set(tensors) == set(described), (set(tensors) ^ set(described))
    for name, t in tensors.items():
        d = described[name]
        assert NAMES[t.dtype] == d["dtype"] and list(t.shape) == d["shape"], name
        assert digest_hex(name, bits(t)) == d["digest"], name


def cairn_writes(folder):
    cairn("Write", folder)
    expected = json.loads((folder / "expected.json").read_text())
    same(load_file(folder / "single.safetensors"), expected)
    with safetensors.safe_open(folder / "single.safetensors", "pt") as f:
        assert f.metadata() == {"format": "pt", "note": "größe"}, f.metadata()
    shards = folder / "sharded"
    index = json.loads((shards / "model.safetensors.index.json").read_text())
    tensors = {name: load_file(shards / file)[name] for name, file in index["weight_map"].items()}
    same(tensors, expected)
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors.values())
    assert len(list(shards.glob("*.safetensors"))) > 2


def cairn_reads(folder):
    written = {}
    g = torch.Generator().manual_seed(1)
    for k in range(20):
        tensors = {}
        for i, dtype in enumerate(random.Random(k).sample(list(NAMES), 8)):
            shape = [[], [0], [3, 0, 2], [7], [5, 3], [2, 1, 4], [1025], [33, 64]][i]
            t = torch.randint(0, 2 if dtype == torch.bool else 120, shape, generator=g)
            tensors[f"t{i}.{'ü' * i}"] = t.to(dtype)
        save_file(tensors, folder / f"pt{k}.safetensors", metadata={"k": str(k)} if k % 2 else None)
        written[f"pt{k}.safetensors"] = tensors
    arrays = {"x": np.arange(12, dtype=np.float32).reshape(3, 4)}
    save_numpy(arrays, folder / "np.safetensors")
    written["np.safetensors"] = {"x": torch.from_numpy(arrays["x"])}
    cairn("Read", folder)
    found = json.loads((folder / "found.json").read_text())
    assert set(found) == set(written)
    for file, tensors in written.items():
        same(tensors, found[file]["tensors"])
    assert found["pt1.safetensors"]["metadata"] == {"k": "1"}


def same_verdict(folder):
    """Mutations of a valid file: Cairn refuses whatever the official reader refuses, by the same name, and accepts what
    it accepts; but keys given twice and types that Cairn does not have are refused by Cairn alone."""
    header = ('{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},'
              '"b":{"dtype":"BF16","shape":[2],"data_offsets":[24,28]},"c":{"dtype":"U8","shape":[],"data_offsets":[28,29]}}')
    data = bytes(range(29))
    r = random.Random(11)
    tokens = ['"', "{", "}", "[", "]", ",", ":", "0", "1", "24", "28", "-1", "1e3", "1.0", "18446744073709551615",
              "18446744073709551616", "9223372036854775808", "null", "true", '"F32"', '"a"', '"b"', "\\", "\\u0000",
              "\\ud800", " ", "\n", "\x00", "\xff", "F64", "F4", "shape", "dtype", "data_offsets", "__metadata__"]
    files = {}
    for k in range(600):
        h, d, length = header, data, None
        kind = k % 8
        at = r.randrange(len(h))
        if kind == 0:
            h = h[:at] + r.choice(tokens) + h[at + r.randrange(3):]
        elif kind == 1:
            a, b = sorted(r.randrange(len(h)) for _ in range(2))
            h = h[:a] + h[b:] if r.random() < 0.5 else h[:b] + h[a:b] + h[b:]
        elif kind == 2:
            h = re.sub(r"\d+", lambda m: r.choice(["0", "1", "24", "28", "29"] + [m[0]] * 60), h)
        elif kind == 3:
            d = d[:r.randrange(30)] + bytes(r.randrange(3))
        elif kind == 4:
            length = r.choice([0, 1, len(h) - 1, len(h) + 1, len(h) + 29, len(h) + 30, 10**8, 10**8 + 1, 2**63, 2**64 - 1])
        elif kind == 5:
            h = h.replace(r.choice(["F32", "BF16", "U8"]), r.choice(["F64", "F16", "I8", "BOOL", "F8_E4M3", "X", "f32"]), 1)
        elif kind == 6:
            entry = r.choice(['"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}', '"z":{"dtype":"U8","shape":[0],"data_offsets":[24,24]}',
                              '"":{"dtype":"I64","shape":[3,0,5],"data_offsets":[29,29]}', '"x":1', '"__metadata__":null'])
            h = h[:-1] + "," + entry + "}"
        else:
            h = re.sub(r"([,:{}])", lambda m: r.choice(["", "", " ", "\n", "\t"]) + m[0] + r.choice(["", "\r", " "]), h)
        raw = h.encode("latin-1")
        files[f"m{k}.safetensors"] = struct.pack("<Q", len(raw) if length is None else length) + raw + d
    for name, content in files.items():
        (folder / name).write_bytes(content)
    cairn("Read", folder)
    found = json.loads((folder / "found.json").read_text())
    counts = {"both read": 0, "both refuse": 0, "refused by Cairn alone": 0}
    for name, content in files.items():
        ours = found[name]
        try:
            official = safetensors.deserialize(content)
        except Exception as e:
            assert "refused" in ours, f"{name}: official: {e}; Cairn reads it: {content}"
            counts["both refuse"] += 1
            continue
        if "refused" in ours:
            message = ours["message"]
            assert ours["refused"] == "DuplicateKey" or "is not one that Cairn reads" in message, f"{message}: {content}"
            counts["refused by Cairn alone"] += 1
            continue
        counts["both read"] += 1
        assert {n for n, _ in official} == set(ours["tensors"])
        for n, t in official:
            d = ours["tensors"][n]
            width = len(t["data"]) // max(1, int(np.prod(t["shape"])))
            assert t["dtype"] == d["dtype"] and t["shape"] == d["shape"]
            assert digest_hex(n, np.frombuffer(bytes(t["data"]), f"u{max(width, 1)}")) == d["digest"]
    print(counts)
    assert counts["both read"] > 100 and counts["both refuse"] > 200


for check in (cairn_writes, cairn_reads, same_verdict):
    with tempfile.TemporaryDirectory() as folder:
        check(Path(folder))
    print(f"{check.__name__}: ok (safetensors {safetensors.__version__})")
