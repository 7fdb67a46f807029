"""YAML read so that a mistake can be told with its line."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from benchmark.errors import SpecError

Path = tuple[Hashable, ...]  # keys and positions that lead to a value


@dataclass(frozen=True)
class Located:
    """A YAML mapping and where its values stand.

    Attributes:
        name: How messages call the document.
        data: The mapping, as plain data.
        lines: Line of every value, from 1, by the path that leads to it.
    """

    name: str
    data: dict[str, Any]
    lines: dict[Path, int] = field(repr=False)

    def at(self, *path: Hashable) -> str:
        """Name a place for a message: the deepest part of the path that has a line."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.name}, line {self.lines[path]}" if path else self.name


def read(text: str, name: str) -> Located:
    """Read a mapping; nothing in it is executed.

    Args:
        text: YAML.
        name: How messages call it.

    Raises:
        SpecError: If it is not YAML, not a mapping, or has a key twice.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        data = loader.construct_document(node) if node else None
    except (ValueError, yaml.YAMLError) as error:
        raise SpecError(f"{name} is not YAML: {' '.join(str(error).split())}") from None
    if node is None or not isinstance(data, dict):
        raise SpecError(f"{name} is not a mapping of fields to values")
    lines: dict[Path, int] = {}
    for path, line in _places(node, ()):
        if path in lines:
            raise SpecError(f"{name}, line {line} has the field '{path[-1]}' a second time")
        lines[path] = line
    return Located(name, data, lines)


def _places(node: yaml.Node, path: Path) -> Iterator[tuple[Path, int]]:
    """Yield the path and line of every value below a node; of a field, the line of its name."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*path, key.value), key.start_mark.line + 1
            yield from _places(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for place, value in enumerate(node.value):
            yield (*path, place), value.start_mark.line + 1
            yield from _places(value, (*path, place))
