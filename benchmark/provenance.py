"""What produced a result: code revision, versions, device. No host names, no paths."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import benchmark
from benchmark.machine import processor


@cache
def provenance(device: str) -> dict[str, Any]:
    """Describe code and machine, as in `ShardRow`."""
    commit, dirty = _revision()
    versions = {
        "python": platform.python_version(),
        "querybench": benchmark.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        **{name: metadata.version(name) for name in ("torchvision", "timm", "pillow")},
        "cpu": processor(),
    }
    if torch.device(device).type == "cuda":
        device = torch.cuda.get_device_name(device)
        versions["cuda"] = str(torch.version.cuda)
    return {
        "commit": commit,
        "dirty": dirty,
        "device": device,
        "versions": " ".join(f"{name}={version}" for name, version in versions.items()),
    }


def _revision() -> tuple[str | None, bool | None]:
    """Commit and dirty flag, if this package lies in a git checkout of its own project."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None, None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit, bool(_git(root, "status", "--porcelain", "--", "benchmark", "registry"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
