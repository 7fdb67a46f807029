"""Packages that only some entries and commands need."""

from __future__ import annotations

import importlib
from typing import Any

from benchmark.errors import SpecError


def load_extra(module: str, extra: str, who: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: Name of the module.
        extra: The extra of this package that installs it.
        who: How the message names what needs it, for example "model 'robustbench'".

    Raises:
        SpecError: If it cannot be imported; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise SpecError(
            f"{who} needs another package ({reason}): pip install 'querybench[{extra}]'"
        ) from error
