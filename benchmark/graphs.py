"""Forward passes on a GPU in a few fixed shapes, each recorded once and then played again.

A small network spends its time on a GPU on starting kernels. A CUDA graph starts all of a pass at
once, but for one shape of batch; so batches are filled up to the next of a few sizes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

Pass = Callable[[Tensor], Tensor]
Record = Callable[[Pass, Tensor], Callable[[], Tensor]]  # a pass and its input -> plays it again

_LEAST = 16  # images of the smallest batch
_WARM_UP = 3  # passes before one is recorded, as PyTorch asks for
_CLOSE = 1e-4  # relative to the largest logit; both are the same kernels on the same shape


class Played(Protocol):
    """A victim."""

    graphs: Graphs | None


class _Recorded(NamedTuple):
    """One shape: where its images are put, and what plays the pass."""

    images: Tensor
    play: Callable[[], Tensor]


class Graphs:
    """Plays a victim's forward passes; its weights must stay where they are.

    Args:
        record: Records a pass.
    """

    def __init__(self, record: Record | None = None) -> None:
        self._record = record or _Recorder()
        self._recorded: dict[tuple[int, ...], _Recorded] = {}
        self._refused = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Graphs:
        """A copy of a victim has other weights, so it records anew."""
        del memo
        return Graphs(self._record if not isinstance(self._record, _Recorder) else None)

    def answer(self, pass_: Pass, images: Tensor) -> Tensor:
        """Do a forward pass, by playing one of the next larger size.

        Args:
            pass_: The pass; row by row, as networks in evaluation mode are.
            images: (n, C, H, W).

        Returns:
            Logits, (n, K).
        """
        if self._refused:
            return pass_(images)
        shape = (filled(len(images)), *images.shape[1:])
        if shape not in self._recorded and not self._try(pass_, images, shape):
            return pass_(images)
        still, play = self._recorded[shape]
        still[: len(images)].copy_(images)  # the rows after them keep older images
        return play()[: len(images)].clone()

    def _try(self, pass_: Pass, images: Tensor, shape: tuple[int, ...]) -> bool:
        """Record a shape, and check that playing gives what the pass gives."""
        still = images.new_zeros(shape)
        still[: len(images)].copy_(images)
        wanted = pass_(still)
        try:
            play = self._record(pass_, still)
        except RuntimeError as error:  # a network that waits for the GPU, or allocates on a CPU
            return self._refuse(" ".join(str(error).split())[:200])
        apart = (play() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12)
        if not bool(apart <= _CLOSE):
            return self._refuse(f"its answers differ by {float(apart):.2g}")
        self._recorded[shape] = _Recorded(still, play)
        return True

    def _refuse(self, reason: str) -> bool:
        self._refused = True
        warnings.warn(f"no CUDA graph of this victim, so it is slower: {reason}", stacklevel=2)
        return False


def watched(network: nn.Module) -> bool:
    """Whether something looks into a pass or changes it: a played pass would pass it by."""
    return any(
        one.training or one._forward_hooks or one._forward_pre_hooks for one in network.modules()
    )


@contextmanager
def unplayed(victim: Played) -> Iterator[None]:
    """Do every pass of a victim in full while the context lasts, so that it can be counted."""
    graphs, victim.graphs = victim.graphs, None
    try:
        yield
    finally:
        victim.graphs = graphs


def filled(count: int) -> int:
    """The next larger batch size: powers of two and one and a half times these."""
    power = max(_LEAST, 1 << (count - 1).bit_length())
    return power * 3 // 4 if count <= power * 3 // 4 and power > _LEAST else power


class _Recorder:
    """Records CUDA graphs that share their memory, for they are played one after the other."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, pass_: Pass, still: Tensor) -> Callable[[], Tensor]:
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        beside = torch.cuda.Stream(still.device)  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream(still.device))
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UP):
                pass_(still)
        torch.cuda.current_stream(still.device).wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            found = pass_(still)

        def play() -> Tensor:
            graph.replay()
            return found

        return play
