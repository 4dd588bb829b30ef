"""The resolved config as YAML: every key written out, paths absolute, and read back as an equal config."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import attrs
import yaml

from lohan_core.backend import Kind
from lohan_core.config.load import SECTIONS
from lohan_core.config.sections import BackendChoice, Config
from lohan_core.units import Bytes, exact_bytes

__all__ = ["dump_config", "plain"]


def dump_config(config: Config) -> str:
    """Write ``config`` as YAML that :func:`~lohan_core.config.load.load_config` reads back as an equal one."""
    sections: dict[str, Any] = {name: _keys(getattr(config, name)) for name in SECTIONS}
    for kind in Kind:
        choice: BackendChoice = getattr(config, kind)
        sections[kind.value] = {"backend": choice.name, **_keys(choice.settings)}
    # In ASCII: with allow_unicode, PyYAML writes some line separators so that it reads them back as blanks.
    return str(yaml.safe_dump(sections, sort_keys=False))


def _keys(settings: object) -> dict[str, Any]:
    cls: Any = type(settings)
    attrs.resolve_types(cls)
    return {f.alias: plain(getattr(settings, f.name), f.type) for f in attrs.fields(cls) if f.init}


def plain(value: Any, type_: Any) -> Any:
    """Turn a value of a config class, annotated as ``type_``, into what YAML holds."""
    if isinstance(value, int) and Bytes in {type_, *get_args(type_)}:
        return exact_bytes(value)
    if attrs.has(type(value)):
        return _keys(value)
    if isinstance(value, Enum | Path):
        return value.value if isinstance(value, Enum) else str(value)
    if isinstance(value, Mapping):
        return {key: plain(inner, None) for key, inner in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        ordered = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return [plain(item, None) for item in ordered]
    return value
