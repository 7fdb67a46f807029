"""Where data and weights are found.

| what | option | variable | key in the config file |
|---|---|---|---|
| folder of data sets | `--data-root` | `QUERYBENCH_DATA` | `data_root` |
| folder of weights | `--weights-root` | `QUERYBENCH_WEIGHTS` | `weights_root` |
| weights of this victim | `--checkpoint` | `QUERYBENCH_CHECKPOINT` | `checkpoint` |
| what was trained and calibrated | `--cache` | `QUERYBENCH_CACHE` | `cache` |
| the config file itself | `--config` | `QUERYBENCH_CONFIG` | |

An option wins over a variable, a variable over the config file. An empty variable counts as
unset. The config file is TOML; without option or variable it is `querybench.toml` in the
current folder, if there is one. Relative paths in it are relative to it. The cache is made where
it is missing, by default in the user's folder of caches. Tables `[endpoints.NAME]` describe remote
classifiers (docs/endpoints.md).
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import BaseModel, ConfigDict, ValidationError

from benchmark.endpoints import Endpoint, read_endpoints
from benchmark.errors import DataError, SpecError, suggestion

_DEFAULT = Path("querybench.toml")
_FILE_VARIABLE = "QUERYBENCH_CONFIG"
_VARIABLES = {
    "data_root": "QUERYBENCH_DATA",
    "weights_root": "QUERYBENCH_WEIGHTS",
    "checkpoint": "QUERYBENCH_CHECKPOINT",
    "cache": "QUERYBENCH_CACHE",
}


class Config(BaseModel):
    """Where data and weights are found.

    Attributes:
        data_root: Folder of data sets, or None.
        weights_root: Folder of weights, or None.
        checkpoint: Weights of the victim, a file, or None.
        cache: Folder of what was trained and calibrated, or None for the usual one.
        endpoints: Remote classifiers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_root: Path | None = None
    weights_root: Path | None = None
    checkpoint: Path | None = None
    cache: Path | None = None
    endpoints: tuple[Endpoint, ...] = ()

    def each_path(self, change: Callable[[Path], Path]) -> Config:
        """Change every path that is given."""
        paths = {key: change(p) for key, p in self if isinstance(p, Path)}
        return self.model_copy(update=paths)

    @property
    def cache_folder(self) -> Path:
        """Folder of what was trained and calibrated."""
        return self.cache or platformdirs.user_cache_path("querybench")


def load_config(
    data_root: Path | None = None,
    weights_root: Path | None = None,
    checkpoint: Path | None = None,
    file: Path | None = None,
    cache: Path | None = None,
) -> Config:
    """Combine options, environment and config file, in this order.

    Args:
        data_root: What `--data-root` says, or None.
        weights_root: What `--weights-root` says, or None.
        checkpoint: What `--checkpoint` says, or None.
        file: What `--config` says, or None.
        cache: What `--cache` says, or None.

    Returns:
        Paths that exist, but for the cache.

    Raises:
        SpecError: If the config file is missing though named, malformed, or has a wrong key.
        DataError: If a path that was given does not exist.
    """
    options = {
        "data_root": data_root,
        "weights_root": weights_root,
        "checkpoint": checkpoint,
        "cache": cache,
    }
    written, origin = _from_file(file)
    chosen: dict[str, Path | None] = {}
    for key, option in options.items():
        name = f"--{key.replace('_', '-')}"
        variable = _variable(_VARIABLES[key])
        in_file: Path | None = getattr(written, key)
        places = [(option, name), (variable, _VARIABLES[key]), (in_file, f"{key} in {origin}")]
        chosen[key] = next((_existing(key, p, who) for p, who in places if p is not None), None)
    return written.model_copy(update=chosen)


def _variable(name: str) -> Path | None:
    text = os.environ.get(name, "")
    return Path(text) if text else None


def _existing(key: str, path: Path, who: str) -> Path:
    path = _home(path)
    if key == "cache":
        if path.exists() and not path.is_dir():
            raise DataError(f"{who}: '{path}' is not a folder")
    elif key == "checkpoint":
        if not path.is_file():
            raise DataError(f"{who}: file '{path}' does not exist")
    elif not path.is_dir():
        raise DataError(f"{who}: folder '{path}' does not exist")
    return path


def _home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # "~name" of a user who does not exist may be a file's name
        return path


def _from_file(file: Path | None) -> tuple[Config, str]:
    """Return what the config file sets, and how messages name the file."""
    named = file or _variable(_FILE_VARIABLE)
    if named is None and not _DEFAULT.is_file():
        return Config(), ""
    path = _home(named or _DEFAULT)
    who = f"config file '{path}'"
    config = _validated(_parsed(path), who)
    return config.each_path(lambda value: path.parent / _home(value)), who


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SpecError(f"config file '{path}' does not exist") from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SpecError(f"config file '{path}' is not readable TOML: {reason}") from error


def _validated(values: dict[str, Any], who: str) -> Config:
    for key in values:
        if key not in Config.model_fields:
            raise SpecError(f"{who}: unknown key '{key}'. {suggestion(key, Config.model_fields)}")
    endpoints = read_endpoints(values.get("endpoints", {}), who)
    try:
        return Config.model_validate({**values, "endpoints": endpoints})
    except ValidationError as error:
        first = error.errors()[0]
        raise SpecError(
            f"{who}: {first['loc'][0]}={first['input']!r} is not allowed: {first['msg']}"
        ) from error
