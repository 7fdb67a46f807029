"""The settings a process makes before it runs shards."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from benchmark import machine
from benchmark.machine import settle

PROGRAM = """
import ctypes, resource, torch
from benchmark.machine import settle
class Info(ctypes.Structure):  # what glibc's mallinfo2 returns
    _fields_ = [(name, ctypes.c_size_t) for name in "abcdefghij"]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
if {settled}:
    settle()
before = libc.mallinfo2().d  # blocks mapped from the system, one by one
large = torch.empty(5 * 2**20)
mapped = libc.mallinfo2().d - before
del large
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for mebibytes in (1, 2, 4, 8, 12, 20, 30) * 5:
        held = [torch.ones(2**18 * mebibytes) for _ in range(6)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(mapped, min(faults() for _ in range(6)))  # the first rounds may still grow the heap
"""


def watched(settled: bool) -> tuple[int, int]:
    """Blocks mapped for 20 MiB, and page faults of rounds that free and ask for the same again."""
    program = [sys.executable, "-c", PROGRAM.format(settled=settled)]
    said = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    mapped, faults = said.split()
    return int(mapped), int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's own")
def test_freed_memory_is_kept():
    mapped, faults = watched(settled=True)
    assert mapped == 0 and faults < 1000
    assert watched(settled=False)[0] == 1  # left alone, glibc maps it (and may fault or not)


CPUINFO = {
    "vendor_id\t: Intel\ncpu family\t: 6\nmodel\t\t: 85\nmodel name\t: X\n": "Intel-6-85",
    "CPU implementer\t: 0x41\nCPU part\t: 0xd0c\n": "0x41-0xd0c",
    "": platform.machine(),
    None: platform.machine(),
}


@pytest.mark.parametrize("text", CPUINFO)
def test_the_kind_of_processor_is_a_word_that_ends_in_its_instructions(text, tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(machine, "_CPUINFO", path)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "NO AVX")
    assert machine.processor() == f"{CPUINFO[text]}-NO_AVX"


def test_a_shard_runs_on_one_thread_without_tf32():
    threads = torch.get_num_threads()
    try:
        settle()
        assert torch.get_num_threads() == 1
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_num_threads(threads)
