"""Modules imported when they are first used: they take long, and most processes never use them."""

from __future__ import annotations

import importlib
from typing import Any


class Late:
    """Stands for a module until something of it is asked for.

    Args:
        name: Full name of the module.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        """Import the module, and give what it has of that name."""
        return getattr(importlib.import_module(self._name), attribute)
