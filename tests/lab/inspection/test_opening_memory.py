"""Large files are read in little memory: it is sampled all the while, in a process of its own."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc"),
]

CODE = """
import re, sys, threading, time
from pathlib import Path
from polarlight.lab.inspection.opening import open_checkpoint
from polarlight.lab.inspection.measure import inspect

def used():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\\s+(\\d+)", status)[1])

def watch():
    while not done:
        seen.append(used())
        time.sleep(0.005)

source = open_checkpoint(Path(sys.argv[1]))
steps = inspect(source)
between, done = [], []
next(steps), next(steps)  # by now everything is loaded that is needed at all
seen = [used()]
thread = threading.Thread(target=watch)
thread.start()
for _, found in steps:
    between.append(used())
done.append(True)
thread.join()
print(len(found.matrices), max(between) - seen[0], max(seen) - seen[0])
"""


def grown(path):
    """Hidden matrices found, and by how many MiB anonymous memory grew at the most.

    Two numbers: between tensors, and sampled all the while, what a tensor needs while it is read
    included; both from when the first two tensors had been read. Pages mapped from the file are
    not counted: they are the system's to drop.
    """
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(path)], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    matrices, between, all_the_while = map(int, done.stdout.split())
    size = path.stat().st_size >> 20
    print(f"{size} MiB: grew by {between >> 10} between tensors, by {all_the_while >> 10} in them")
    return matrices, between / 1024, all_the_while / 1024


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_of_many_matrices_needs_the_memory_of_a_few(tmp_path, suffix):
    """A quarter of a gigabyte in 16 matrices of 16 MiB."""
    tensors = {
        f"layers.{i}.mlp.{p}.weight": torch.randn(2048, 2048)
        for i in range(8)
        for p in ("up_proj", "down_proj")
    }
    path = tmp_path / f"x{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    matrices, between, _ = grown(path)
    assert matrices == 16
    assert between < 100


def test_a_file_beyond_two_gigabytes(tmp_path):
    """Four matrices of 64 MiB in bfloat16 between two tables of 1 GiB; sparse on the disk."""
    shapes = {"model.embed_tokens.weight": (131_072, 4096)}
    for layer in range(2):
        shapes[f"model.layers.{layer}.mlp.up_proj.weight"] = (8192, 4096)
        shapes[f"model.layers.{layer}.mlp.down_proj.weight"] = (4096, 8192)
    shapes["lm_head.weight"] = (131_072, 4096)
    header, end = {}, 0
    for name, (m, n) in shapes.items():
        header[name] = {"dtype": "BF16", "shape": [m, n], "data_offsets": [end, end + 2 * m * n]}
        end += 2 * m * n
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    assert path.stat().st_size > 2 << 30
    matrices, between, all_the_while = grown(path)
    assert matrices == 4
    assert between < 300
    assert all_the_while < 1024  # a matrix is 128 MiB as float32, and a few copies of it are made
