"""The rows of `steals.csv`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class StealRow:
    """`steals.csv`: one row for each transfer, that is clones at a checkpoint, and method."""

    dataset: Annotated[str, "data set"]
    model: Annotated[str, "victim"]
    pool: Annotated[str | None, "data set whose split train, from its end, the attacker has"]
    pool_images: Annotated[int | None, "how many of its images; empty for all"]
    defense: Annotated[str, "defense with the parameters that differ from the default"]
    matched_drop: Annotated[str | None, "as in cells.csv"]
    drop: Annotated[float | None, "clean accuracy lost against strength zero, as in defenses.csv"]
    drop_error: Annotated[float | None, "its standard error over images"]
    attack: Annotated[
        str,
        "stealing attack with the parameters that differ from the default; noise: no gradient is "
        "followed; white-box: the victim's own is",
    ]
    scores: Annotated[str | None, "what replies showed"]
    seeds: Annotated[str, "seed of every random stream; of an ensemble of clones joined by '+'"]
    budget: Annotated[int, "queries allowed for each clone, in all"]
    queries: Annotated[int, "queries charged for all clones"]
    on_the_way: Annotated[bool, "the attack's schedule was stretched to a larger budget"]
    images: Annotated[int, "images compared and attacked: the denominator of every fraction"]
    victim_accuracy: Annotated[float, "share of right answers of the bare victim"]
    clean_accuracy: Annotated[float, "share of clean images whose mean answer is right, defended"]
    clean_accuracy_single: Annotated[float, "mean share of right answers on clean images, defended"]
    clone_accuracy: Annotated[
        float | None, "share of right answers; of an ensemble the clones' mean"
    ]
    clone_accuracy_normalised: Annotated[float | None, "the same over victim_accuracy"]
    agreement: Annotated[
        float | None,
        "share of images on which clone and defended victim agree; of a line of reference known "
        "without a defense alone",
    ]
    divergence: Annotated[
        float | None, "mean Kullback-Leibler divergence of the clone's answers from its, nats"
    ]
    agreement_asked: Annotated[
        float | None, "agreement on new images of the kind that the attack asked about"
    ]
    divergence_asked: Annotated[float | None, "divergence on these"]
    method: Annotated[str, "how images were made on the clones: pgd, mi-fgsm; sign-noise without"]
    eps: Annotated[float, "radius of the linf ball in pixel units of the [0, 1] range"]
    robust_accuracy: Annotated[
        float,
        "share of images whose mean defended answer is right when clean, and on these images (S3)",
    ]
    robust_accuracy_low: Annotated[float, "95 % Wilson interval over images, lower end"]
    robust_accuracy_high: Annotated[float, "upper end"]
    robust_accuracy_single: Annotated[float, "mean share of right answers to them"]
    verdict: Annotated[
        str | None,
        "uninformative: without a defense the clone has less than 0.6 of the victim's accuracy, or "
        "transfer does not beat sign noise; informative: neither; empty where it is not known",
    ]
    parameters: Annotated[str, "every parameter and version of all entries, JSON"]
    thefts: Annotated[str | None, "keys of the thefts, joined by '+'"]
    transfer: Annotated[str, "key of the transfer"]
    device: Annotated[str, "device: cpu, or the name of the GPU"]
    commit: Annotated[str | None, "revision of querybench, if run from a git checkout"]
    dirty: Annotated[bool | None, "the checkout had uncommitted changes"]
    versions: Annotated[str, "as in shards.csv"]
