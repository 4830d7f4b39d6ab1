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
from polarlight.inspection.opening import open_checkpoint
from polarlight.inspection.measure import inspect

def used():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\\s+(\\d+)", status)[1])

def watch():
    while not done:
        seen.append(used())
        time.sleep(0.005)

source = open_checkpoint(Path(sys.argv[1]))
seen, done = [used()], []
thread = threading.Thread(target=watch)
thread.start()
matrices = [len(found.matrices) for _, found in inspect(source)][-1]
done.append(True)
thread.join()
print(matrices, max(seen) - seen[0])
"""


def grown(path):
    """Hidden matrices found, and by how many MiB anonymous memory grew at the most.

    Pages mapped from the file are not counted: they are the system's to drop.
    """
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(path)], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    matrices, kilobytes = map(int, done.stdout.split())
    print(f"grew by {kilobytes >> 10} MiB over a file of {path.stat().st_size >> 20} MiB")
    return matrices, kilobytes / 1024


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
    matrices, mebibytes = grown(path)
    assert matrices == 16
    assert mebibytes < 150


def test_a_file_beyond_two_gigabytes(tmp_path):
    """36 matrices of 64 MiB in bfloat16, 128 as float32; sparse on the disk."""
    shape, header, end = (4096, 8192), {}, 0
    for layer in range(18):
        for name, size in (("up_proj", shape[::-1]), ("down_proj", shape)):
            start, end = end, end + 2 * shape[0] * shape[1]
            key = f"model.layers.{layer}.mlp.{name}.weight"
            header[key] = {"dtype": "BF16", "shape": size, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.write(torch.randn(shape).bfloat16().view(torch.uint8).numpy().tobytes())
        file.truncate(8 + len(text) + end)
    assert path.stat().st_size > 2 << 30
    matrices, mebibytes = grown(path)
    assert matrices == 36
    assert mebibytes < 1024
