"""The configuration reference, written from the config classes: ``python -m lohan_core.config.reference``.

A key's meaning stands in the ``Attributes:`` section of its class's docstring, where a reader of the code looks for it.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Mapping
from enum import Enum
from inspect import cleandoc
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import attrs

from lohan_core.backend import Kind
from lohan_core.config.dump import plain
from lohan_core.config.load import DEFAULT_BACKENDS, SECTIONS
from lohan_core.registry import Registry, load_registry
from lohan_core.units import Bytes

__all__ = ["Key", "keys", "meanings", "render"]

_INTRODUCTION = """\
# Configuration

<!-- Written by `python -m lohan_core.config.reference`; a test compares. Edit the config classes instead. -->

A run is described by one YAML file with the sections below. In `storage`, `optimizer`, `planner` and `profiler` the key
`backend` picks a plugin, and the other keys are that plugin's own; `lohan plugins` lists what is installed, and
`lohan plugins NAME` the keys of one plugin, whoever made it.

- **Sizes** are a number of bytes, or text: `24GiB`, `1.5 MiB` (powers of 1024), `60GB` (powers of 1000).
- **Numbers** may have an exponent: `1e-4`.
- **Relative paths** start from the directory of the config file; in `--set`, from the current directory. `~` is the
  home directory.
- `--set section.key=value` overrides the file, in order; the value is YAML.
  `--set 'storage={backend: memory}'` replaces a whole section.
- An unknown key, a wrong type or an impossible value stops the program with exit code 2 and a line for each mistake,
  which names file, line and key.

The run directory receives `config.yaml`: the config as resolved, every key written out.
"""

_SHIPPED_BY = "lohan"


@attrs.frozen
class Key:
    """One key of a section as people read of it: all text. No meaning: its class's docstring does not say."""

    name: str
    type: str
    default: str
    meaning: str


def render(registry: Registry) -> str:
    """Write the reference, in Markdown, of the core's sections and of every backend that LoHan itself ships."""
    parts = [_INTRODUCTION]
    for name, cls in SECTIONS.items():
        parts += [f"## {name}\n", f"{_summary(cls)}\n", _table(cls)]
    for kind in Kind:
        default = DEFAULT_BACKENDS[kind]
        parts.append(f"## {kind}\n\n`backend` (default `{default}`) names the {kind} plugin.\n")
        for offer in registry.offers:
            if offer.kind is kind and offer.provider.distribution == _SHIPPED_BY:
                cls = offer.backend.config
                parts += [f"### {kind}: {offer.backend.name}\n", f"{_summary(cls)}\n", _table(cls)]
    return "\n".join(part for part in parts if part)


def meanings(cls: type) -> Mapping[str, str]:
    """Return what the docstrings of ``cls`` and its bases say about each key, under ``Attributes:``."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, section = cleandoc(base.__doc__ or "").partition("\nAttributes:\n")
        key = ""
        for line in section.splitlines():
            if match := re.fullmatch(r" {4}(\w+): (.*)", line):
                key, found[match[1]] = match[1], match[2]
            elif key and line.startswith(" " * 8):
                found[key] += f" {line.strip()}"
    return found


def _summary(cls: type) -> str:
    return cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ").replace("``", "`")


def keys(cls: Any) -> list[Key]:
    """Return the keys that a section's config class has, in their order."""
    attrs.resolve_types(cls)
    described = meanings(cls)
    return [
        Key(field.alias, _type(field.type), _default(field), described.get(field.alias, ""))
        for field in attrs.fields(cls)
        if field.init
    ]


def _table(cls: type) -> str:
    rows = [f"| `{key.name}` | {key.type} | {key.default} | {key.meaning} |" for key in keys(cls)]
    if not rows:
        return ""
    return "\n".join(["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows]) + "\n"


_WORDS = {bool: "`true` or `false`", int: "whole number", float: "number", str: "text", Path: "path", Bytes: "size"}


def _type(type_: Any) -> str:
    arguments = get_args(type_)
    if type_ in _WORDS:
        text = _WORDS[type_]
    elif get_origin(type_) in {Union, types.UnionType}:
        text = " or ".join("`null`" if argument is types.NoneType else _type(argument) for argument in arguments)
    elif isinstance(type_, type) and issubclass(type_, Enum):
        text = ", ".join(f"`{member.value}`" for member in type_)
    elif get_origin(type_) is Literal:
        text = ", ".join(f"`{choice}`" for choice in arguments)
    elif get_origin(type_) is tuple and arguments[-1] is ...:
        text = f"list of {_type(arguments[0])}s"
    elif get_origin(type_) is tuple:
        text = f"list of {len(arguments)} {_type(arguments[0])}s"
    elif get_origin(type_) is list:
        text = f"list of {_type(arguments[0])}s"
    elif get_origin(type_) is dict:
        text = f"keys with {_type(arguments[1])}s"
    elif attrs.has(type_):
        text = "keys with values"
    else:
        text = str(type_)
    return text


def _default(field: attrs.Attribute[Any]) -> str:
    if field.default is attrs.NOTHING:
        return "required"
    factory = getattr(field.default, "factory", None)
    value = plain(factory() if factory else field.default, field.type)
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


if __name__ == "__main__":
    print(render(load_registry()), end="")
