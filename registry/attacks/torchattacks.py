"""Attacks of torchattacks, run under our oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from benchmark.facts import AttackFacts
from benchmark.registry import Member, Source, family
from benchmark.types import Access, Aim, Norm
from registry.moves.borrowed import Ask, Case, Door
from registry.moves.libraries import EVERY, Borrowed, Library

_CODE = "https://github.com/Harry24k/adversarial-attacks-pytorch"
_FEW_PIXELS = "it bounds the number of pixels, not linf or l2"

_ATTACKS = {
    "SPSA": Borrowed(
        AttackFacts(
            Source(
                "Uesato et al.: Adversarial Risk and the Dangers of Weak Attacks (ICML)",
                "https://arxiv.org/abs/1802.05666",
                2018,
                _CODE,
                (*EVERY, "its iterates are never asked, only the probes around them"),
            ),
            Access.SCORES,
            (Norm.LINF,),
            randomised=True,
            free=True,
        ),
        ends={"nb_iter": 1},
        sets={"eps": lambda case: case.threat.eps},
    ),
    "Square": Borrowed(
        AttackFacts(
            Source(
                "Andriushchenko et al.: Square Attack (ECCV)",
                "https://arxiv.org/abs/1912.00049",
                2020,
                _CODE,
                EVERY,
            ),
            Access.SCORES,
            (Norm.LINF, Norm.L2),
            randomised=True,
            free=True,
        ),
        ends={"n_queries": 1},
        sets={
            "norm": lambda case: "Linf" if case.threat.norm is Norm.LINF else "L2",
            "eps": lambda case: case.threat.eps,
            "seed": lambda case: case.seed,
        },
        types={"loss": Literal["margin", "ce"]},
    ),
}

_GRADIENTS = """
    APGD APGDT AutoAttack BIM CW DIFGSM DeepFool EADEN EADL1 EOTPGD FAB FFGSM FGSM JSMA Jitter LGV
    MIFGSM NIFGSM PGD PGDL2 PGDRS PGDRSL2 PIFGSM PIFGSMPP RFGSM SINIFGSM SPGD SparseFool TIFGSM TPGD
    UPGD VMIFGSM VNIFGSM
"""


def _start(target: Any, case: Case, ask: Ask, parameters: dict[str, Any]) -> Callable[[], object]:
    attack = target(Door(ask), **parameters)
    if case.threat.aim is Aim.TARGETED:
        attack.set_mode_targeted_by_function(target_map_function=lambda _images, labels: labels)
    return lambda: attack(case.image, case.label)


_LIBRARY = Library(
    entry="torchattacks",
    package="torchattacks",
    module="torchattacks",
    attacks=_ATTACKS,
    start=_start,
    gradients=frozenset(_GRADIENTS.split()),
    refused={"OnePixel": _FEW_PIXELS, "Pixle": _FEW_PIXELS},
    kept=frozenset({"verbose"}),
)


@family(
    source=Source(
        paper="Kim: Torchattacks",
        url="https://arxiv.org/abs/2010.01950",
        year=2020,
        code=_CODE,
        differences=EVERY,
    ),
    argument="CLASS",
    members=_LIBRARY.members,
)
def torchattacks(name: str) -> Member:
    """Attack CLASS of torchattacks, each image alone, with its own parameters."""
    return _LIBRARY.member(name)
