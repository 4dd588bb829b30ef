"""Which planners are compared: each by name, with settings of its own."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from attrs import frozen

from lohan_core.backend import Kind
from lohan_core.config.document import Document, Origin
from lohan_core.config.sections import Config
from lohan_core.config.structure import structure_document
from lohan_core.errors import ConfigError
from lohan_core.interfaces.planner import Planner
from lohan_core.registry import Registry

__all__ = ["NamedPlanner", "open_planners"]

MARK = ":"
"""Between a planner's name and its settings, and between them."""


@frozen
class NamedPlanner:
    """A planner that was opened, by what it was asked for with: its name, or name and settings."""

    name: str
    planner: Planner

    @property
    def backend(self) -> str:
        """Its name alone."""
        return self.name.partition(MARK)[0]


def open_planners(names: Sequence[str], config: Config, registry: Registry) -> tuple[NamedPlanner, ...]:
    """Open planners: ``name``, or ``name:key=value:key=value``.

    Where no settings are given, the config's own planner has those of the config, and the others have their defaults.

    Raises:
        ConfigError: no planner is given, or one twice, or its settings are not such as it has.
        BackendError: there is no such planner, or it is not usable on this machine.
    """
    if not names:
        raise ConfigError("--planners: name one at least")
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(f"--planners: {min(twice)} is named twice")
    return tuple(NamedPlanner(name, _open(name, config, registry)) for name in names)


def _open(asked: str, config: Config, registry: Registry) -> Planner:
    name, *assignments = asked.split(MARK)
    backend = registry.find(Kind.PLANNER, name)
    is_own = name == config.planner.name and not assignments
    settings = config.planner.settings if is_own else _settings(asked, assignments, backend.config)
    return registry.open_backend(Kind.PLANNER, name, settings)


def _settings(asked: str, assignments: Sequence[str], cls: type[attrs.AttrsInstance]) -> attrs.AttrsInstance:
    origin = Origin.of_option("--planners", asked)
    if not all("=" in assignment for assignment in assignments):
        raise ConfigError(f"{origin.text}: write NAME{MARK}KEY=VALUE")
    document = Document({}, origin)
    for assignment in assignments:
        document.override(assignment, origin)
    return structure_document(cls, document)
