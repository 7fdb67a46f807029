"""What a process that runs shards asks of its machine: same arithmetic, and memory that is kept."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# glibc's mallopt names; its own limit for the second is 32 MiB
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _HEAP_BLOCK_BYTES = 2**30, 2**25
_CPUINFO = Path("/proc/cpuinfo")
_KIND = ("vendor_id", "cpu family", "model", "CPU implementer", "CPU part")  # x86; ARM


def settle() -> None:
    """Make arithmetic the same whoever runs the shard, and allocation cheap.

    It holds for the whole process, the caller's own where a run stays in it.
    """
    torch.set_num_threads(1)  # results cannot depend on how many jobs share the machine
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    keep_memory()


def processor() -> str:
    """Name the kind of processor: arithmetic is the same to the bit on one kind only.

    Returns:
        What tells the kind, as far as the system says it, and the instructions that torch uses,
        for example "AuthenticAMD-25-1-AVX2"; without spaces.
    """
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        text = ""
    lines = (line.partition(":") for line in text.splitlines())
    said = {name.strip(): value.strip() for name, _, value in lines}
    kind = [said[name] for name in _KIND if name in said] or [platform.machine()]
    words = "-".join([*kind, torch.backends.cpu.get_cpu_capability()])
    return "_".join(words.split())


@contextmanager
def threads_kept() -> Iterator[None]:
    """Give the caller's thread count back where a job ran in this process."""
    count = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(count)


def keep_memory() -> bool:
    """Have glibc keep freed memory (up to 1 GiB) instead of giving it back after every layer.

    A victim frees and asks for the same activations again with every batch; each page given back
    costs a page fault, up to a quarter of a small victim's time (docs/performance.md).

    Returns:
        Whether it was done: False on a system without glibc, where it would mean nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    wishes = {_TRIM_THRESHOLD: _KEPT_BYTES, _MMAP_THRESHOLD: _HEAP_BLOCK_BYTES}
    return all(mallopt(name, value) == 1 for name, value in wishes.items())
