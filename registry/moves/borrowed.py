"""Attacks of other libraries, which own their loop, turned inside out: each image a greenlet.

A foreign attack runs alone on one image. Where it calls its model it is suspended, and the images
it asks about join the round of all others. So the oracle counts, caps and attributes its queries
as it does those of any attack.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmark.errors import ForeignError
from benchmark.rng import RowRng
from benchmark.types import Problem, Queries, Replies, Steps, Threat
from registry.moves.apart import begin, restore, states, their_turn

Ask = Callable[[Tensor], Tensor]  # images (n, C, H, W) -> answers (n, K), float32, on the CPU
Shows = Literal["scores", "probabilities", "label"]

_PATIENCE = 1000  # how often an attack that catches everything is told to end


@dataclass(frozen=True)
class Case:
    """One image as a foreign attack is given it.

    Attributes:
        image: Clean image, (1, C, H, W), float32, on the CPU.
        label: True label, or the wanted one of a targeted run, (1,), int64.
        threat: Norm, radius, budget and aim.
        num_classes: Number of classes K.
        questions: Most questions it may ask.
        seed: From the image's own stream, 31 bits.
        start: An image of the wanted class, like `image`; None for an attack that needs none.
    """

    image: Tensor
    label: Tensor
    threat: Threat
    num_classes: int
    questions: int
    seed: int
    start: Tensor | None = None


@dataclass(frozen=True)
class Visit:
    """A foreign attack, and how it is to be met.

    Attributes:
        name: Name for messages.
        run: Attacks one image; what it returns is ignored.
        shows: What its model answers: our scores, their softmax, or the label as one-hot vector.
        surrenders: How errors begin, as "Type: message", by which it gives an image up.
    """

    name: str
    run: Callable[[Case, Ask], object]
    shows: Shows
    surrenders: tuple[str, ...] = ()


class Door(nn.Module):
    """What a library that wants a torch module calls."""

    def __init__(self, ask: Ask) -> None:
        super().__init__()
        self._ask = ask
        self.place = nn.Parameter(torch.zeros(1))  # libraries look there for the device
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Ask, and wait for the answers."""
        return self._ask(images)


def host(problem: Problem, rng: RowRng, visit: Visit) -> Steps:
    """Run a foreign attack on every image, each alone, and pass on what it asks.

    Raises:
        ForeignError: If the foreign attack fails by an error of its own.
    """
    guests = [_Guest(visit, case) for case in _cases(problem, rng)]
    try:
        with their_turn():
            for guest in guests:
                guest.go_on()
        while asking := [row for row, guest in enumerate(guests) if guest.question is not None]:
            replies = yield _queries(problem, asking, guests)
            _tell(replies, problem, visit.shows, [guests[row] for row in asking])
    finally:
        with their_turn():
            for guest in guests:
                guest.end()


def _cases(problem: Problem, rng: RowRng) -> Iterator[Case]:
    wanted = problem.labels if problem.targets is None else problem.targets
    seeds = rng.integers(problem.rows, 2**31).tolist()
    images, labels = problem.images.cpu().float(), wanted.cpu()
    starts = None if problem.starts is None else problem.starts.cpu().float()
    for row, seed in enumerate(seeds):
        one = slice(row, row + 1)
        yield Case(
            images[one].clone(),
            labels[one].clone(),
            problem.threat,
            problem.num_classes,
            problem.questions,
            seed,
            None if starts is None else starts[one].clone(),
        )


def _queries(problem: Problem, asking: Sequence[int], guests: Sequence[_Guest]) -> Queries:
    images = [guests[row].waiting for row in asking]
    counts = torch.tensor([len(image) for image in images])
    rows = torch.tensor(asking).repeat_interleave(counts)
    return Queries(torch.cat(images).to(problem.images), rows.to(problem.labels.device))


def _tell(replies: Replies, problem: Problem, shows: Shows, guests: Sequence[_Guest]) -> None:
    """Answer each attack; one whose image is finished, or was not answered in full, is over."""
    sizes = [len(guest.waiting) for guest in guests]
    answers = torch.split(_answers(replies, shows, problem.num_classes), sizes)
    going = torch.split((replies.answered & ~replies.finished).cpu(), sizes)
    with their_turn():
        for guest, answer, on in zip(guests, answers, going, strict=True):
            if bool(on.all()):
                guest.go_on(answer)
            else:
                guest.end()


def _answers(replies: Replies, shows: Shows, classes: int) -> Tensor:
    if shows == "label":
        return nn.functional.one_hot(replies.labels.cpu().clamp_min(0), classes).float()
    scores = replies.scores.detach().cpu().float()
    return scores.softmax(1) if shows == "probabilities" else scores.clone()


class _Guest:
    """A foreign attack on one image.

    Attributes:
        question: Images that it waits for answers to, (n, C, H, W); None if it is over.
    """

    def __init__(self, visit: Visit, case: Case) -> None:
        self._library: Any = importlib.import_module("greenlet")
        self._visit, self._case = visit, case
        self._greenlet = self._library.greenlet(self._body)
        self._states: tuple[Any, ...] | None = None
        self.question: Tensor | None = None

    @property
    def waiting(self) -> Tensor:
        """The question of an attack that is not over."""
        if self.question is None:
            raise RuntimeError("an attack that is over waits for nothing")
        return self.question

    def go_on(self, *answer: Tensor) -> None:
        """Start the attack, or answer it, and let it run up to its next question or its end."""
        asked = self.question is not None
        self._enter()
        try:
            self.question = self._greenlet.switch(*answer)
        except Exception as error:
            self.question = None
            said = f"{type(error).__name__}: {error}"
            if not (asked and said.startswith(self._visit.surrenders)):
                line = " ".join(said.split())
                raise ForeignError(f"attack '{self._visit.name}' failed: {line}") from error
        finally:
            self._states = states()

    def end(self) -> None:
        """Stop the attack wherever it is.

        Raises:
            ForeignError: If it will not be stopped.
        """
        self.question = None
        if not self._greenlet:  # not started, or over
            return
        self._enter()
        for _ in range(_PATIENCE):
            with suppress(Exception):  # what it says to that does not matter
                self._greenlet.throw(self._library.GreenletExit)
            if self._greenlet.dead:
                return
        raise ForeignError(f"attack '{self._visit.name}' will not end when it is told to")

    def _enter(self) -> None:
        """Put its random streams, its gradient mode and its filters of warnings in force."""
        if self._states is None:
            begin(self._case.seed)
        else:
            restore(self._states)

    def _body(self) -> None:
        self._visit.run(self._case, self._ask)

    def _ask(self, images: Tensor) -> Tensor:
        images, clean = images.detach().cpu(), self._case.image
        if images.shape[1:] != clean.shape[1:]:
            raise ValueError(f"it asked about an image of shape {tuple(images.shape[1:])}")
        # Its model would answer NaN with NaN; a victim has to be shown an image.
        answer: Tensor = self._greenlet.parent.switch(images.where(images.isfinite(), clean))
        return answer
