"""One thread, no surprises: what every test runs under."""

from __future__ import annotations

import os
import tempfile

import pytest
import torch

_CACHE = tempfile.TemporaryDirectory(prefix="querybench-tests-")  # what tests train is theirs


def pytest_configure() -> None:
    torch.set_num_threads(1)
    os.environ["QUERYBENCH_CACHE"] = _CACHE.name
    # The tests share the cores already: a run starts processes only where a test asks for jobs.
    os.environ["LOKY_MAX_CPU_COUNT"] = "1"


def pytest_unconfigure(config: pytest.Config) -> None:
    _CACHE.cleanup()
