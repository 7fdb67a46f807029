"""What every stealing attack must keep, checked on a small victim and a pool of random images."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmark.config import Config
from benchmark.contract.toy import (
    CLASSES,
    Broken,
    demand,
    global_randomness_watched,
    small_data,
    small_victim,
)
from benchmark.data import Dataset, Split
from benchmark.defended import Defended
from benchmark.entry import Choice
from benchmark.rng import RowRng
from benchmark.scores import Scores
from benchmark.stack import undefended
from benchmark.stealing.meter import COMPANY, Meter, drain
from benchmark.stealing.pool import Pool
from benchmark.stealing.stealer import Scene, Stealer

_SHAPE = (3, 8, 8)
_BUDGET, _HALF = 4000, 2000  # more than an iteration of any of ours costs


class _Recorder(Meter):
    """A meter that keeps the questions, and may answer wrongly."""

    def __init__(self, name: str, twist: Callable[[Tensor], Tensor] | None = None) -> None:
        victim = small_victim().float()
        defended = Defended(victim, undefended().build(), COMPANY)
        super().__init__(name, defended, RowRng(range(COMPANY)), Scores(), _SHAPE)
        self.asked: list[Tensor] = []
        self._twist = twist or (lambda chances: chances)

    def ask(self, images: Tensor, left: int) -> Tensor:
        self.asked.append(images.detach().clone())
        return self._twist(super().ask(images, left))

    @property
    def questions(self) -> Tensor:
        return torch.cat([torch.zeros(0, *_SHAPE), *self.asked])


def _pool() -> Pool:
    data: Dataset = small_data()
    ids = data.splits[Split.TRAIN]
    labels = torch.from_numpy(data.labels[ids])
    return Pool(labels, CLASSES, lambda places: data.read(ids[places.numpy()]).float())


def _begun(choice: Choice[Any], seed: int = 0) -> Stealer:
    attack: Stealer = choice.entry.build(**choice.values)
    attack.begin(Scene(_SHAPE, CLASSES, _BUDGET, seed, _pool(), torch.device("cpu")))
    return attack


def _until(attack: Stealer, meter: Meter, mark: int) -> None:
    """Let it ask up to a checkpoint, as the engine does."""
    while drain(attack, meter, mark - meter.used) > 0:
        pass


def _learned(attack: Stealer) -> dict[str, Tensor]:
    shares = list(attack.learn())
    demand(shares and shares[-1] == 1.0, "learn() does not end with the share 1.0")
    return {name: value.clone() for name, value in attack.clone.state_dict().items()}


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def check_bill(choice: Choice[Any], _config: Config) -> None:
    """It asks valid images without gradient, and never more than is left."""
    attack, meter = _begun(choice), _Recorder(choice.entry.name)
    _until(attack, meter, _HALF)
    _until(attack, meter, _BUDGET)
    asks = choice.entry.facts.asks
    demand(bool(meter.used) == asks, f"it asked {meter.used} queries, and declares asks={asks}")


def check_clone(choice: Choice[Any], _config: Config) -> None:
    """Its clone is in evaluation mode, answers with finite logits, and fits the blank network."""
    attack, meter = _begun(choice), _Recorder(choice.entry.name)
    _until(attack, meter, _HALF)
    state = _learned(attack)
    demand(not attack.clone.training, "the clone is in training mode")
    images = torch.rand(5, *_SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = attack.clone(images)
        demand(logits.shape == (5, CLASSES), f"logits have shape {tuple(logits.shape)}")
        demand(logits.isfinite().all(), "a logit of the clone is not finite")
        blank = attack.blank(_SHAPE[0], CLASSES)
        blank.load_state_dict(state)
        demand(torch.equal(blank.eval()(images), logits), "blank() with its weights is not it")


def check_resumed(choice: Choice[Any], _config: Config) -> None:
    """Put away at a checkpoint and taken out again, it asks and learns the same."""
    attack, meter = _begun(choice), _Recorder(choice.entry.name)
    _until(attack, meter, _HALF)
    _learned(attack)
    buffer = io.BytesIO()
    torch.save(attack.state(), buffer)
    before = len(meter.questions)
    _until(attack, meter, _BUDGET)
    wanted, clone = meter.questions[before:], _learned(attack)

    again, second = _begun(choice), _Recorder(choice.entry.name)
    again.resume(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    second.used = before
    _until(again, second, _BUDGET)
    demand(torch.equal(second.questions, wanted), "it asks other questions")
    demand(_same(clone, _learned(again)), "it learns another clone")


def check_learning(choice: Choice[Any], _config: Config) -> None:
    """Learning at a checkpoint and sampling change nothing that is asked later."""
    runs = []
    for looks in (False, True):
        attack, meter = _begun(choice), _Recorder(choice.entry.name)
        _until(attack, meter, _HALF)
        if looks:
            _learned(attack)
            attack.sample(3, torch.Generator().manual_seed(2))
        _until(attack, meter, _BUDGET)
        runs.append((meter.questions, _learned(attack)))
    demand(torch.equal(runs[0][0], runs[1][0]), "it asks other questions afterwards")
    demand(_same(runs[0][1], runs[1][1]), "it learns another clone afterwards")


def check_seeded(choice: Choice[Any], _config: Config) -> None:
    """Its first questions depend on the seed alone, and on no global random state."""
    first = []
    for seed, twist in ((0, None), (0, lambda chances: chances.flip(1)), (1, None)):
        with global_randomness_watched():
            attack, meter = _begun(choice, seed), _Recorder(choice.entry.name, twist)
            drain(attack, meter, _BUDGET)
            _learned(attack)
        first.append(meter.asked[0] if meter.asked else torch.zeros(1, *_SHAPE))
    demand(torch.equal(first[0], first[1]), "its first question depends on the answers")
    if choice.entry.facts.asks:
        demand(not torch.equal(first[0], first[2]), "another seed asks the same first question")


def check_sample(choice: Choice[Any], _config: Config) -> None:
    """Its samples are valid images that depend on the given stream alone."""
    attack, meter = _begun(choice), _Recorder(choice.entry.name)
    _until(attack, meter, _HALF)
    _learned(attack)
    some, same, other = (
        attack.sample(9, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    if some.shape != (9, *_SHAPE) or some.dtype != torch.float32:
        raise Broken(f"samples have shape {tuple(some.shape)} and type {some.dtype}")
    demand(not some.requires_grad, "samples carry a gradient")
    demand(some.min() >= 0 and some.max() <= 1, "a sample lies outside [0, 1]")
    demand(torch.equal(some, same), "the same stream gives other samples")
    demand(not torch.equal(some, other), "another stream gives the same samples")
