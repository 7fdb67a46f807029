"""One thread, no surprises: what every test runs under."""

from __future__ import annotations

import torch


def pytest_configure() -> None:
    torch.set_num_threads(1)
