"""What `bench list`, `show`, `check` and `status` say."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from benchmark import contract
from benchmark.catalogue import (
    ATTACKS,
    DATASETS,
    DEFENSES,
    MODELS,
    STEALERS,
    Catalogue,
    load_file,
)
from benchmark.config import Config
from benchmark.entry import Choice, Entry
from benchmark.errors import RegistryError, SpecError, StoreError, suggestion
from benchmark.facts import Traits
from benchmark.ref import Ref, text
from benchmark.stealing.tables import rebuild_steals
from benchmark.store import THEFTS, TRANSFERS, Store
from benchmark.suites import load_suite, suites
from benchmark.tables import rebuild

_KINDS: dict[str, Catalogue[Any]] = {
    "attacks": ATTACKS,
    "defenses": DEFENSES,
    "models": MODELS,
    "datasets": DATASETS,
    "stealing": STEALERS,
}


def rows(kind: str, plugins: Sequence[Path]) -> list[dict[str, Any]]:
    """List the entries of a kind.

    Raises:
        SpecError: If there is no such kind.
    """
    for plugin in plugins:
        load_file(plugin)
    if kind == "suites":
        found = {name: load_suite(name).data for name in suites()}
        return [{"name": name, "what": data.get("summary", "")} for name, data in found.items()]
    if kind not in _KINDS:
        raise SpecError(f"unknown kind '{kind}'. {suggestion(kind, [*_KINDS, 'suites'])}")
    listed = [row for entry in _KINDS[kind] for row in _rows(entry)]
    return sorted(listed, key=lambda row: str(row["name"]))


def _rows(entry: Entry[Any]) -> list[dict[str, Any]]:
    """A row, or one for each attack of a family; its library need not be there."""
    members = getattr(entry.facts, "members", {})
    if not members:
        return [_row(entry)]
    borrowed = [replace(entry, name=f"{entry.name}:{n}", facts=f) for n, f in members.items()]
    return [{**_row(one), "what": one.facts.source.paper} for one in borrowed]


def _row(entry: Entry[Any]) -> dict[str, Any]:
    argument = getattr(entry.facts, "argument", "")
    return {
        "name": f"{entry.name}:{argument}" if argument else entry.name,
        "what": entry.summary,
        "parameters": {
            name: text(field.default) for name, field in entry.parameters.model_fields.items()
        },
        "facts": {
            field.name: _fact(getattr(entry.facts, field.name))
            for field in fields(entry.facts)
            if field.name not in {"source", "presets", "members"}
        },
        "presets": sorted(getattr(entry.facts, "presets", {})),
        "paper": entry.facts.source.paper,
        "url": entry.facts.source.url,
        "module": entry.module,
    }


def _fact(value: object) -> str:
    if isinstance(value, Traits):
        return ", ".join(name for name, holds in asdict(value).items() if holds)
    if isinstance(value, tuple):
        return ", ".join(str(part) for part in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {part:.4g}" for key, part in value.items())
    return text(value)


def find(name: str, plugins: Sequence[Path] = ()) -> Choice[Any]:
    """Find an entry of any kind by what a user writes.

    Raises:
        RegistryError: If no kind has it.
    """
    for plugin in plugins:
        load_file(plugin)
    wanted = Ref.parse(name).name
    known = {entry.name: catalogue for catalogue in _KINDS.values() for entry in catalogue}
    if wanted not in known:
        raise RegistryError(f"unknown entry '{wanted}'. {suggestion(wanted, known)}")
    return known[wanted].choose(name)


def describe(name: str, plugins: Sequence[Path]) -> str:
    """Describe an entry: facts, parameters, source and differences; or a suite."""
    if name in suites():
        return yaml.safe_dump(load_suite(name).data, sort_keys=False).rstrip()
    for plugin in plugins:
        load_file(plugin)
    ref = Ref.parse(name)
    needed = {e.name for kind in (MODELS, DATASETS) for e in kind if e.facts.argument}
    if ref.name in needed and not ref.argument:
        name = f"{ref.name}:any"
    families = {e.name for e in ATTACKS if e.facts.members}
    whole = ref.name in families and not ref.argument
    entry: Entry[Any] = ATTACKS.get(ref.name) if whole else find(name).entry
    source, row = entry.facts.source, _row(entry)
    facts = [[key, value] for key, value in row["facts"].items() if value]
    lines = [
        f"{entry.kind} {row['name']}: {entry.summary}",
        "",
        tabulate(facts, tablefmt="plain"),
        "",
        f"Source: {source.paper}, {source.year}. {source.url} {source.code}".rstrip(),
        *[f"Differs: {difference}" for difference in source.differences],
    ]
    if whole:
        lines += ["", *_members(entry)]
    elif row["parameters"]:
        lines += ["", *_settings(entry)]
    return "\n".join([*lines, "", inspect.getdoc(entry.build) or ""]).rstrip()


def _members(entry: Entry[Any]) -> list[str]:
    """Each attack of a family, a line each."""
    table = [
        [f"{entry.name}:{name}", str(facts.access), str(facts.goal), _fact(facts.norms)]
        for name, facts in sorted(entry.facts.members.items())
    ]
    return [tabulate(table, ["attack", "access", "goal", "norms"])]


def _settings(entry: Entry[Any]) -> list[str]:
    """Every parameter: our default, and below it each preset where it differs."""
    presets = getattr(entry.facts, "presets", {})
    usual = entry.settings()
    if not presets:
        return [tabulate([[k, text(v)] for k, v in usual.items()], ["parameter", "default"])]
    table = [["default", *(_short(value) for value in usual.values())]]
    for name in presets:
        values = entry.settings(name)
        differing = ("" if values[key] == usual[key] else _short(values[key]) for key in usual)
        table.append([f"@{name}", *differing])
    lines = [tabulate(table, ["settings", *usual], disable_numparse=True), ""]
    for name, preset in presets.items():
        norm = f" ({preset.norm})" if preset.norm else ""
        note = f" {preset.note[0].upper()}{preset.note[1:]}." if preset.note else ""
        lines.append(f"{entry.name}@{name}{norm}: {preset.origin}.{note}")
    return lines


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else text(value)


def check(name: str, plugins: Sequence[Path], config: Config) -> list[dict[str, str]]:
    """Run the contract on an entry, or on all entries of a file, under all its examples."""
    for plugin in plugins:
        load_file(plugin)
    path = Path(name)
    own = path.suffix == ".py"
    targets = [entry.name for entry in load_file(path)] if own else [name]
    table = []
    for target in targets:
        for choice in _variants(target):
            table += [
                {"entry": str(choice), "check": v.check, "result": v.status, "detail": v.detail}
                for v in contract.verify(choice, config)
            ]
    return table


def _variants(name: str) -> list[Choice[Any]]:
    choice = find(name)
    if "[" in name:
        return [choice]
    return [find(name + example) for example in contract.variants(choice.entry)]


def _last_line(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip().rpartition("\n")[2]


def status(out: Path) -> str:
    """Tell what a folder of results holds.

    Raises:
        StoreError: If it holds no results.
    """
    store = _there(out, writable=False)
    damaged = []
    done: dict[str, set[int]] = {}
    wanted: dict[str, int] = {}
    names: dict[str, list[str]] = {}
    for key in store.saved():
        try:
            shard = store.read(key)
        except StoreError as error:
            damaged.append(f"damaged: {error}")
            continue
        if shard is not None:
            cell = shard["cell"]
            parts = (str(cell[k]) for k in ("dataset", "model", "defense", "attack"))
            names[cell["cell"]] = [f"{cell['norm']} {cell['eps']:.4g}", *parts]
            wanted[cell["cell"]] = cell["images"]
            covered = range(shard["first"], shard["first"] + shard["count"])
            done.setdefault(cell["cell"], set()).update(covered)
    table = [[*names[key], f"{len(done[key])}/{wanted[key]}"] for key in done]
    headers = ["threat", "dataset", "model", "defense", "attack", "images done"]
    failures = sorted(store.failures.glob("*.txt")) if store.failures.is_dir() else []
    lines = [tabulate(sorted(table), headers=headers), *damaged]
    lines += [f"failed: {path.stem}: {_last_line(path)}" for path in failures]
    return "\n".join(lines)


def collect(out: Path) -> str:
    """Rebuild the tables of a folder; tell what they are of.

    Raises:
        StoreError: If it holds no results, or cannot be written.
    """
    store = _there(out, writable=True)
    found = rebuild(store)
    cells = {shard["cell"]["cell"] for shard in found.shards}
    damaged = list(store.damaged)
    lines = [f"{len(found.shards)} shards of {len(cells)} cells are in the tables of {out}"]
    if transfers := store.saved(TRANSFERS):
        rebuild_steals(store)
        damaged += [line for line in store.damaged if line not in damaged]
        lines.append(f"{len(transfers)} transfers and {len(store.saved(THEFTS))} thefts as well")
    lines = [*(f"damaged, and missing in the tables: {line}" for line in damaged), *lines]
    return "\n".join(lines)


def _there(out: Path, *, writable: bool) -> Store:
    if not (out / "shards").is_dir():
        raise StoreError(f"'{out}' holds no results: it has no folder 'shards'")
    return Store(out, writable=writable)
