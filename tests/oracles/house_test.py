"""The laws of the house: includes go one way, and one OpenMP library is in the process."""
# labels: quick
import os
import re
import subprocess

from harness import CAIRN, main

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# folder -> first parts of what it may not include
FORBIDDEN = {
    "models": ("trainer/", "optim/", "checkpoints/"),
    "optim": ("trainer/", "models/", "checkpoints/"),
    "checkpoints": ("trainer/", "models/", "optim/"),
    "models/layers": ("models/families/", "models/decoder"),
    "models/kernels": ("models/families/", "models/decoder", "models/layers/"),
}


def includes(folder):
    for place, _, names in os.walk(os.path.join(ROOT, folder)):
        for name in names:
            if name.endswith((".h", ".cpp", ".cu", ".cuh")):
                path = os.path.join(place, name)
                with open(path) as file:
                    for target in re.findall(r'^\s*#include\s+"([^"]+)"', file.read(), re.M):
                        yield os.path.relpath(path, ROOT), target


def test_includes_go_one_way():
    seen = 0
    for folder, forbidden in FORBIDDEN.items():
        for path, target in includes(folder):
            seen += 1
            assert not target.startswith(forbidden), f"{path} includes {target}"
    assert seen > 200, seen


TOP = {"CMakeLists.txt", "README.md", "LICENSE", "cairn", "cmake", ".ci", ".clang-format", ".clang-tidy", ".gitignore", "trainer", "models", "optim", "checkpoints",
       "configs", "tests"}


def test_the_top_level_is_fixed():
    listed = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True)
    if listed.returncode != 0:
        print("not a clone of the repository: left out")
        return
    assert {name.split("/")[0] for name in listed.stdout.split("\n") if name} == TOP


def test_one_openmp():
    libraries = subprocess.run(["ldd", CAIRN], capture_output=True, text=True, check=True).stdout
    openmp = re.findall(r"lib(?:gomp|iomp5|omp)\S* => (\S+)", libraries)
    assert len(openmp) == 1 and "/torch/lib/" in openmp[0], openmp
    assert "libtorch_cuda" not in libraries


if __name__ == "__main__":
    main([test_includes_go_one_way, test_the_top_level_is_fixed, test_one_openmp])
