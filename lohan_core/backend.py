"""What a plugin offers: one record per backend, made at registration and opened when a run asks for it."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Generic, TypeVar

from attrs import field, frozen
from attrs.validators import instance_of

__all__ = ["Backend", "Kind"]

T_co = TypeVar("T_co", covariant=True)


class Kind(StrEnum):
    """The four kinds of backend; each is a section of the config file."""

    STORAGE = "storage"
    OPTIMIZER = "optimizer"
    PLANNER = "planner"
    PROFILER = "profiler"


def _usable() -> str | None:
    return None


@frozen(kw_only=True)
class Backend(Generic[T_co]):
    """An offer: name, what it is, what a config file may say to it, how to open it, and whether it works here.

    ``open(config, **runtime)`` gets an instance of ``config`` and the runtime objects of its kind (see the interface's
    module); it does the heavy imports. ``probe()`` answers None when the backend is usable on this machine, else one
    line with the reason and the remedy; it must be cheap, because ``lohan plugins`` calls every probe.
    """

    name: str = field(validator=instance_of(str))
    summary: str = field(validator=instance_of(str))
    config: type
    open: Callable[..., T_co]
    probe: Callable[[], str | None] = _usable
