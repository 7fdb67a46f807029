"""What a user asks for, from the command line, a suite file or Python, checked in one place."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from benchmark.errors import RegistryError, SpecError, suggestion
from benchmark.params import number, reason
from benchmark.ref import split_list
from benchmark.scores import Scores
from benchmark.types import Norm, Probes

_MARKS = (100, 1000, 2500, 10_000)  # usual checkpoints of the literature
_SUITES = "registry.suites"


class Request(BaseModel):
    """A run: attacks crossed with defenses on one victim.

    Attributes:
        attacks: Attacks, for example "square[p=0.3]".
        defenses: Defenses; the undefended row is always added.
        dataset: Data set.
        model: Victim; None means the data set's usual one.
        images: Images evaluated, the first of split `eval`.
        queries: Budget of each image.
        budgets: Checkpoints up to `queries`; None means the usual ones.
        norm: Norm of the threat.
        eps: Radii in pixel units of the [0, 1] range; None means the data set's usual one.
        run_to_budget: Attacks that look for the nearest adversarial image do not stop in the ball:
            all radii are read off one run, and distances are those of the whole budget.
        match_drop: Points of clean accuracy that each defense may cost; its strength is set so.
        targeted: Attacks aim at one label, drawn for each image.
        eot: Queries a question (EOT); several run each attack once for each. None means what the
            attacks say themselves, usually 1.
        seed: Seed of every random stream.
        scores: What replies show, for example "top-5".
        probes: Where estimators may place their probes.
        votes: Fresh answers that verify a hit, odd.
        draws: Fresh answers averaged for S3.
        shard: Images in a shard.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    attacks: tuple[str, ...] = ()
    defenses: tuple[str, ...] = ("none",)
    dataset: str = "mnist"
    model: str | None = None
    images: Annotated[int, Field(ge=1, le=10**9)] = 200
    queries: Annotated[int, Field(ge=1, le=10**9)] = 300
    budgets: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    norm: Norm = Norm.LINF
    eps: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    run_to_budget: bool = False
    match_drop: tuple[Annotated[float, Field(gt=0, le=50)], ...] | None = None
    targeted: bool = False
    eot: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    scores: Scores = Scores()
    probes: Probes = Probes.BOX
    votes: Annotated[int, Field(ge=1, le=999)] = 9
    draws: Annotated[int, Field(ge=1, le=10**6)] = 20
    shard: Annotated[int, Field(ge=1, le=10**9)] = 100

    @field_validator("attacks", "defenses", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return split_list(value) if isinstance(value, str) else value

    @field_validator("budgets", "eot", "match_drop", mode="before")
    @classmethod
    def _numbers(cls, value: object) -> object:
        if isinstance(value, int | float):
            return [value]
        return value.split(",") if isinstance(value, str) else value

    @field_validator("scores", mode="before")
    @classmethod
    def _shown(cls, value: object) -> object:
        return Scores.parse(value) if isinstance(value, str) else value

    @field_validator("eps", mode="before")
    @classmethod
    def _fractions(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(number(part) for part in value.split(","))
        return [value] if isinstance(value, int | float) else value

    @field_validator("votes")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd, so that a majority always exists")
        return value

    def checkpoints(self) -> tuple[int, ...]:
        """Checkpoints in ascending order, the budget last.

        Raises:
            SpecError: If one lies beyond the budget.
        """
        asked = self.budgets or tuple(mark for mark in _MARKS if mark < self.queries)
        if max(asked, default=0) > self.queries:
            raise SpecError(
                f"--budgets {max(asked)} lies beyond --queries {self.queries}, the budget of a run"
            )
        return tuple(sorted({*asked, self.queries}))


def make_request(suite: str | None = None, *, attacked: bool = True, **given: Any) -> Request:
    """Check a request; what is given wins over the suite, None counts as not given.

    Args:
        suite: Name of a built-in suite or path of a YAML file, or None.
        attacked: The request is to name at least one attack.
        **given: Fields of `Request`.

    Raises:
        SpecError: For an unknown field or a value that is not allowed.
        RegistryError: For an unknown suite.
    """
    fields = load_suite(suite) if suite else {}
    fields.pop("summary", None)
    fields |= {name: value for name, value in given.items() if value is not None}
    where = f"suite '{suite}'" if suite else "request"
    for name in fields:
        if name not in Request.model_fields:
            known = suggestion(str(name), Request.model_fields)
            raise SpecError(f"{where} has an unknown field '{name}'. {known}")
    try:
        request = Request.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(part for part in first["loc"] if isinstance(part, str))
        raise SpecError(f"{place}={first['input']} is not allowed: {reason(first)}") from None
    if attacked and not request.attacks:
        raise SpecError("no attack was named: give --attacks a,b or a suite")
    return request


def load_suite(name: str) -> dict[str, Any]:
    """Read a built-in suite, or a YAML file given by its path.

    Raises:
        RegistryError: If there is no such suite.
        SpecError: If the file is not a YAML mapping.
    """
    path = Path(name)
    builtin = suites()
    source: Path | Traversable
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        source = path
    elif name in builtin:
        source = resources.files(_SUITES).joinpath(f"{name}.yaml")
    else:
        raise RegistryError(f"unknown suite '{name}'. {suggestion(name, builtin)}")
    try:
        content = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SpecError(f"suite '{name}' is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise SpecError(f"suite '{name}' is not a mapping of fields to values")
    return content


def suites() -> list[str]:
    """Names of the built-in suites."""
    files = resources.files(_SUITES).iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))
