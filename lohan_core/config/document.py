"""A config file as read: plain values, and where each was written, for error messages and relative paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias

import yaml
from attrs import Factory, define, frozen

from lohan_core.errors import ConfigError

__all__ = ["Document", "KeyPath", "Origin", "read_document"]

KeyPath: TypeAlias = tuple[str, ...]
"""``("optimizer", "lr")``; the empty path is the whole document."""


@frozen(kw_only=True)
class Origin:
    """Where a value was written: ``text`` for messages, and the directory that relative paths start from."""

    text: str
    directory: Path

    @classmethod
    def of_option(cls, option: str, value: str) -> Self:
        """Return the origin of what an option of the command line was given."""
        return cls(text=f"{option} {value}", directory=Path.cwd())


@define
class Document:
    """Nested plain values, and the origin of every mapping's key."""

    values: dict[str, Any]
    root: Origin
    origins: dict[KeyPath, Origin] = Factory(dict)

    def origin(self, path: KeyPath) -> Origin:
        """Return where ``path``, or the first thing in it, or else the nearest thing around it was written."""
        if path and path not in self.origins:
            for inner, origin in self.origins.items():
                if inner[: len(path)] == path:
                    return origin
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return self.root

    def override(self, assignment: str, origin: Origin) -> None:
        """Apply one ``section.key=value``; the value is YAML.

        Raises:
            ConfigError: it is not of that form, or goes through something that has no keys.
        """
        key, equals, text = assignment.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(path):
            raise ConfigError(f"{origin.text}: write section.key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{origin.text}: the value is not YAML: {_problem(error)}") from None
        parent = self.values
        for depth, part in enumerate(path[:-1], start=1):
            if parent.get(part) is None:
                parent[part] = {}
            parent = parent[part]
            if not isinstance(parent, dict):
                raise ConfigError(f"{origin.text}: {'.'.join(path[:depth])} has no keys")
        parent[path[-1]] = value
        # What the file said below this key is gone, and so is where it said it.
        self.origins = {p: o for p, o in self.origins.items() if p[: len(path)] != path}
        self.origins[path] = origin


def read_document(path: Path, overrides: Sequence[str] = ()) -> Document:
    """Read a YAML file and apply ``--set`` overrides in order.

    Raises:
        ConfigError: the file cannot be read or is not a YAML mapping, or a key stands in it twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot read the config file: {reason}") from None
    directory = path.absolute().parent
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not YAML: {_problem(error)}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: wants sections with keys, got {type(values).__name__}")
    document = Document(values, Origin(text=str(path), directory=directory))
    if isinstance(node, yaml.MappingNode):
        _locate(node, (), document, path)
    for assignment in overrides:
        document.override(assignment, Origin.of_option("--set", assignment))
    return document


def document_from_mapping(values: Mapping[str, Any], directory: Path) -> Document:
    """Make a document of values that never were in a file; messages then name the key alone."""
    return Document(_plain_copy(values), Origin(text="config", directory=directory))


def _locate(node: yaml.MappingNode, above: KeyPath, document: Document, file: Path) -> None:
    for key_node, value_node in node.value:
        path = (*above, str(key_node.value))
        line = f"{file}:{key_node.start_mark.line + 1}"
        if path in document.origins:
            raise ConfigError(f"{line}: {'.'.join(path)} is given twice; first at {document.origins[path].text}")
        document.origins[path] = Origin(text=line, directory=document.root.directory)
        if isinstance(value_node, yaml.MappingNode):
            _locate(value_node, path, document, file)


def _plain_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain_copy(inner) for key, inner in value.items()}
    return value


def _problem(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None) or str(error)
    return " ".join(str(problem).split())
