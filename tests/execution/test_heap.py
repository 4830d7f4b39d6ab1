"""`raise_mmap_threshold`: freed memory stays for the next step; opt-in."""

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource
import torch
import torch._dynamo  # which torch 2.7 cannot import under another default device
import polarlight
from polarlight.execution.heap import raise_mmap_threshold

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
without = min([faults() for _ in range(6)][3:])
raise_mmap_threshold()
print(without, min([faults() for _ in range(6)][3:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's heap")
def test_a_step_faults_no_page_after_the_call_and_the_optimizer_does_not_call_it():
    command = [sys.executable, "-c", STEPS]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    without, after = map(int, found.stdout.split())
    print(f"page faults in a step on ten megabytes of weights: {without}, after the call {after}")
    assert after < 256
    assert without > 4 * after
