"""Adversarial training: the victim is trained on its own adversarial images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch.nn.functional import cross_entropy

from benchmark.checkpoints import load_into, read_state
from benchmark.data import Dataset
from benchmark.defense import Defense
from benchmark.registry import Level, Source, Traits, defense
from benchmark.victim import Victim
from registry.parts.training import Schedule, Trainer, adversarial, file_hash


@defense(
    source=Source(
        paper="Wong et al.: Fast is better than free: Revisiting adversarial training (ICLR); "
        "Madry et al.: Towards Deep Learning Models Resistant to Adversarial Attacks (ICLR 2018)",
        url="https://arxiv.org/abs/2001.03994",
        year=2020,
        code="https://github.com/locuslab/fast_adversarial",
        differences=(
            "starts from the given victim",
            "a few epochs on split train, so it is weaker than published models: give those as "
            "checkpoint",
        ),
    ),
    level=Level.WEIGHTS,
    traits=Traits(),
    examples=("[epochs=1,steps=3]",),
)
@dataclass(kw_only=True)
class At(Defense):
    """Answers like any victim, with weights trained on FGSM or PGD images.

    Attributes:
        eps: Radius of the training images, linf, pixel units of the [0, 1] range.
        steps: Steps of the training attack: 1 is fast adversarial training, more is PGD.
        epochs: Times that every image of split `train` is shown.
        rate: Largest learning rate.
        checkpoint: Weights of an adversarially trained model of the victim's architecture, for
            example of RobustBench; nothing is trained then.
    """

    eps: Annotated[float, Field(gt=0)] = 8 / 255
    steps: Annotated[int, Field(ge=1)] = 1
    epochs: Annotated[int, Field(ge=1)] = 15
    rate: Annotated[float, Field(gt=0)] = 0.02
    checkpoint: Path | None = None

    def recipe(self) -> Mapping[str, object]:
        """Return what training depends on: of a checkpoint its content."""
        if self.checkpoint is None:
            return {n: getattr(self, n) for n in ("eps", "steps", "epochs", "rate")}
        return {"checkpoint": file_hash(self.checkpoint)}

    def fit(self, victim: Victim, data: Dataset) -> Iterator[float]:
        """Train the victim, or load the checkpoint."""
        if self.checkpoint is not None:
            _load(victim, self.checkpoint)
            yield 1.0
            return
        schedule = Schedule(self.epochs, 64, self.rate)
        trainer = Trainer(victim, data, schedule, statistics=True)
        for images, labels in trainer.batches():
            start = trainer.uniform(images)
            moved = adversarial(victim, images, labels, start, self.eps, self.steps)
            yield trainer.step(cross_entropy(victim(moved), labels))


def _load(victim: Victim, path: Path) -> None:
    """Load weights that may stand under a prefix, beside a normalisation of their own."""
    state, last = read_state(path), list(victim.network.state_dict())[-1]
    prefixes = {name.removesuffix(last) for name in state if name.endswith(last)}
    prefix = min(prefixes, key=len, default="")
    inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    own = {name: value for name, value in inner.items() if name in victim.network.state_dict()}
    load_into(victim.network, own if prefix else inner, path)
