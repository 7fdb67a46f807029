"""The settings a process makes before it runs shards."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from benchmark.machine import settle

CHURN = """
import resource, torch
from benchmark.machine import settle
if {settled}:
    settle()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for mebibytes in (1, 2, 4, 8, 12, 20, 30) * 5:
        held = [torch.ones(2**18 * mebibytes) for _ in range(6)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def faults(settled: bool) -> int:
    """Page faults of rounds that free and ask again for the same memory."""
    program = [sys.executable, "-c", CHURN.format(settled=settled)]
    return int(subprocess.run(program, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's own")
def test_freed_memory_is_kept():
    assert faults(settled=True) < 1000 < 10_000 < faults(settled=False)


def test_a_shard_runs_on_one_thread_without_tf32():
    threads = torch.get_num_threads()
    try:
        settle()
        assert torch.get_num_threads() == 1
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_num_threads(threads)
