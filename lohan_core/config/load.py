"""From a file, or from plain values, to a checked :class:`~lohan_core.config.sections.Config`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lohan_core.backend import Kind
from lohan_core.config.document import Document, document_from_mapping, read_document
from lohan_core.config.sections import BackendChoice, Config, DataConfig, MemoryConfig, ModelConfig, RunConfig
from lohan_core.config.structure import Problems, structure
from lohan_core.errors import BackendError
from lohan_core.registry import Registry
from lohan_core.suggest import choose_one_of

__all__ = ["DEFAULT_BACKENDS", "SECTIONS", "config_from_mapping", "load_config"]

SECTIONS: Mapping[str, type] = {"model": ModelConfig, "data": DataConfig, "run": RunConfig, "memory": MemoryConfig}
"""The sections that belong to the core, in the order in which they are documented and written."""

DEFAULT_BACKENDS: Mapping[Kind, str] = {
    Kind.STORAGE: "aio",
    Kind.OPTIMIZER: "cpuadam",
    Kind.PLANNER: "greedy",
    Kind.PROFILER: "measured",
}
"""What a section that names no ``backend`` gets."""


def load_config(path: Path, overrides: Sequence[str], registry: Registry) -> Config:
    """Read and check a config file.

    Args:
        path: the YAML file. Relative paths in it start from its directory.
        overrides: ``section.key=value`` each, applied in order; relative paths in them start from the current
            directory.
        registry: says what each chosen backend's section may hold.

    Raises:
        ConfigError: one line per mistake, each naming file and line (or ``--set``), key, reason and nearest valid name.
    """
    return _build(read_document(path, overrides), registry)


def config_from_mapping(values: Mapping[str, Any], registry: Registry, directory: Path | None = None) -> Config:
    """Check a config given as nested plain values, as a YAML file would hold them.

    Relative paths start from ``directory``, by default the current one. Raises ConfigError as :func:`load_config`.
    """
    return _build(document_from_mapping(values, directory or Path.cwd()), registry)


def _build(document: Document, registry: Registry) -> Config:
    problems = Problems(document)
    names = [*SECTIONS, *(kind.value for kind in Kind)]
    for name in document.values:
        if name not in names:
            problems.add((str(name),), f"unknown section. {choose_one_of(name, names)}")
    parts: dict[str, Any] = {
        name: structure(cls, _section(name, document, problems), (name,), document, problems)
        for name, cls in SECTIONS.items()
    }
    parts |= {kind: _choice(kind, document, registry, problems) for kind in Kind}
    run, data = parts["run"], parts["data"]
    if run is not None and data is not None and run.eval_every is not None and data.eval is None:
        problems.add(("run", "eval_every"), "needs data.eval, the file to evaluate on")
    problems.raise_any()
    return Config(**parts)


def _section(name: str, document: Document, problems: Problems) -> dict[str, Any]:
    section = document.values.get(name)
    if section is None:
        return {}
    if not isinstance(section, dict):
        problems.add((name,), f"wants keys with values, got {section!r}")
        return {}
    return section


def _choice(kind: Kind, document: Document, registry: Registry, problems: Problems) -> BackendChoice | None:
    section = dict(_section(kind, document, problems))
    name = section.pop("backend", DEFAULT_BACKENDS[kind])
    try:
        backend = registry.find(kind, name)
    except BackendError as error:
        problems.add((kind, "backend"), str(error))
        return None
    settings = structure(backend.config, section, (kind,), document, problems)
    return None if settings is None else BackendChoice(kind=kind, name=name, settings=settings)
