"""A YAML file as plain data that knows the line of each of its parts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from compressor.errors import CompressorError, UsageError
from compressor.paths import refusal, state

Place: TypeAlias = tuple[str | int, ...]
"""Where in a document: keys and positions from its root."""

LARGEST_FILE = 16 << 20
"""Bytes of a manifest."""

LARGEST = 100_000
"""Parts that a document may have once its aliases are spelled out."""

_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)(?::-([^}]*))?\})")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and where."""

    line: int
    message: str


@dataclass(frozen=True)
class Document:
    """A YAML file read.

    Args:
        path: The file.
        value: What it holds: dicts, lists and scalars.
        lines: Line of every part, from 1.
    """

    path: Path
    value: Any
    lines: Mapping[Place, int]

    def line(self, place: Sequence[str | int]) -> int:
        """Return the line of a part, or of the nearest one that holds it."""
        for end in range(len(place), -1, -1):
            if tuple(place[:end]) in self.lines:
                return self.lines[tuple(place[:end])]
        return 1


def refuse(path: Path, problems: Sequence[Problem]) -> UsageError:
    """Return one error that lists every problem under its line."""
    lines = [
        f"{path}:{found.line}: {found.message}" for found in sorted(problems, key=lambda p: p.line)
    ]
    if len(lines) > 1:
        lines.insert(0, f"{path} has {len(lines)} problems, and no job was begun:")
    return UsageError("\n".join(lines))


def read_document(path: Path, environment: Mapping[str, str] = os.environ) -> Document:
    """Read a YAML file, with ``${NAME}`` and ``${NAME:-otherwise}`` replaced in its texts.

    Args:
        path: The file.
        environment: Where the variables are looked up. ``$$`` stands for a dollar sign.

    Raises:
        CompressorError: If this user may not read it.
        UsageError: If there is no such file, it is no YAML, repeats a key, or names a variable that
            is not set.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        if isinstance(error, PermissionError) or path.is_file():
            raise CompressorError(f"Cannot read the manifest {path}: {refusal(error)}") from error
        raise UsageError(
            f"No manifest at {path}: it {state(path)}. Expected a YAML file; compressor batch "
            "--schema tells its keys."
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"Cannot read the manifest {path}: {error}. Expected YAML in UTF-8."
        ) from error
    if len(content) > LARGEST_FILE:
        raise UsageError(f"{path} is larger than {LARGEST_FILE:,} bytes. Split the batch.")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        reader = _Reader(loader, environment)
        value = reader.read(node, ()) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        raise refuse(path, [Problem(line, f"no YAML: {error.problem or error.context}")]) from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is no YAML: {error}.") from error
    except RecursionError as error:
        raise UsageError(f"{path} is nested too deep to be read.") from error
    if reader.problems:
        raise refuse(path, reader.problems)
    return Document(path=path, value=value, lines=reader.lines)


class _Reader:
    """Turns nodes into data and notes their lines."""

    def __init__(self, loader: yaml.SafeLoader, environment: Mapping[str, str]) -> None:
        self._loader, self._environment = loader, environment
        self.lines: dict[Place, int] = {}
        self.problems: list[Problem] = []
        self._open: set[int] = set()

    def read(self, node: yaml.Node, place: Place, line: int | None = None) -> Any:
        line = node.start_mark.line + 1 if line is None else line
        self.lines[place] = line
        if len(self.lines) > LARGEST or id(node) in self._open:
            raise yaml.MarkedYAMLError(
                problem="aliases make it too large, or part of itself", problem_mark=node.start_mark
            )
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _TAGS:
            raise yaml.MarkedYAMLError(problem=f"tag {node.tag}", problem_mark=node.start_mark)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, place)
            if isinstance(node, yaml.SequenceNode):
                return [self.read(item, (*place, at)) for at, item in enumerate(node.value)]
            return self._scalar(node, line)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        written = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        seen: dict[str, int] = {}
        for key in written:
            line = key.start_mark.line + 1
            name = str(key.value)
            if name in seen:
                self.problems.append(
                    Problem(line, f"{name!r} is given twice; first on line {seen[name]}")
                )
            seen.setdefault(name, line)
        self._loader.flatten_mapping(node)
        found = {}
        for key, item in node.value:
            name = str(key.value)
            found[name] = self.read(item, (*place, name), key.start_mark.line + 1)
        return found

    def _scalar(self, node: yaml.Node, line: int) -> Any:
        value = self._loader.construct_object(node, deep=True)
        if not isinstance(value, str):
            return value

        def replaced(match: re.Match[str]) -> str:
            dollar, name, otherwise = match.groups()
            if dollar:
                return "$"
            if name in self._environment:
                return self._environment[name]
            if otherwise is None:
                self.problems.append(
                    Problem(
                        line,
                        f"the environment variable {name} is not set. Set it, or write "
                        f"${{{name}:-otherwise}}",
                    )
                )
            return otherwise or ""

        return _VARIABLE.sub(replaced, value)
