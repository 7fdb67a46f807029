"""What foreign code shares with us in a process, put away while it runs and taken out again."""

from __future__ import annotations

import io
import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np
import torch

from benchmark.rng import alone


@contextmanager
def their_turn() -> Iterator[None]:
    """Run foreign code: it is silent, and our random streams and gradient mode are kept from it."""
    with alone, warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        ours, level = states(), logging.root.manager.disable
        cuda = torch.cuda.get_rng_state_all() if _on_gpu() else None
        makers = np.random.RandomState, np.random.default_rng
        logging.disable(logging.CRITICAL)
        _replace(_SeededState, _seeded_generator)
        try:
            yield
        finally:
            _replace(*makers)
            logging.disable(level)
            restore(ours)
            if cuda is not None:
                torch.cuda.set_rng_state_all(cuda)


def _on_gpu() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def begin(seed: int) -> None:
    """Put the states in force that foreign code begins with.

    Args:
        seed: Of every global random stream, 31 bits.
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - foreign code draws there
    torch.default_generator.manual_seed(seed)
    torch.set_grad_enabled(True)
    warnings.filters = []
    warnings.simplefilter("ignore")


def states() -> tuple[Any, ...]:
    """Global random streams, gradient mode and filters of warnings."""
    numbers = random.getstate(), np.random.get_state()  # noqa: NPY002 - foreign code draws there
    return *numbers, torch.get_rng_state(), torch.is_grad_enabled(), warnings.filters


def restore(kept: tuple[Any, ...]) -> None:
    """Put states in force."""
    random.setstate(kept[0])
    np.random.set_state(kept[1])  # noqa: NPY002 - foreign code draws there
    torch.set_rng_state(kept[2])
    torch.set_grad_enabled(kept[3])
    warnings.filters = kept[4]


def _replace(state: Any, generator: Any) -> None:
    """Set what numpy makes new random streams with."""
    np.random.RandomState, np.random.default_rng = state, generator  # type: ignore[misc]


_plain_generator = np.random.default_rng


class _SeededState(np.random.RandomState):
    """A stream that without a seed is seeded from the global one, not from the machine."""

    def __init__(self, seed: Any = None) -> None:
        super().__init__(np.random.randint(2**31) if seed is None else seed)  # noqa: NPY002


def _seeded_generator(seed: Any = None) -> np.random.Generator:
    return _plain_generator(np.random.randint(2**31) if seed is None else seed)  # noqa: NPY002
