"""Memory that a step frees is there for the next one: no page is asked for anew."""

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource
import sys
import torch
import torch._dynamo  # which torch 2.7 cannot import under another default device
import polarlight.optimizer.spectral

if sys.argv[1] == "without":
    polarlight.optimizer.spectral.keep_freed_memory = lambda: None
torch.set_num_threads(1)
torch.set_default_device("meta")  # what a caller makes of the default is not ours to rely on
params = [torch.nn.Parameter(torch.randn(512, 128, device="cpu")) for _ in range(40)]
optimizer = polarlight.Aurora(params, lr=0.01)


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for p in params:
        p.grad.normal_()
    optimizer.step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


for p in params:
    p.grad = torch.randn_like(p)
print(min([faults() for _ in range(6)][3:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's heap")
def test_a_step_faults_no_memory_in():
    faults = {}
    for how in ("with", "without"):
        command = [sys.executable, "-c", STEPS, how]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        faults[how] = int(found.stdout)
    print(f"page faults in a step on ten megabytes of weights: {faults}")
    assert faults["with"] < 256
    assert faults["without"] > 4 * faults["with"]
