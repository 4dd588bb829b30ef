"""Which backends there are: plugins found through entry points, checked one by one, so that none can harm another."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import Any, Literal, overload

import attrs
import pluggy
from attrs import frozen

from lohan_core import hookspecs
from lohan_core.backend import Backend, Kind
from lohan_core.errors import BackendError, LohanError
from lohan_core.interfaces.optimizer import Optimizer, OptimizerConfig
from lohan_core.interfaces.planner import Planner
from lohan_core.interfaces.profiler import Profiler
from lohan_core.interfaces.storage import Storage
from lohan_core.suggest import choose_one_of

__all__ = ["BrokenPlugin", "Offer", "Provider", "Registry", "load_registry"]

TRACE_VARIABLE = "LOHAN_TRACE_HOOKS"
"""Environment variable; ``1`` writes every hook call and what it returned to stderr."""

_HOOK_OF_KIND = {kind: f"lohan_{kind}" for kind in Kind}

_INTERFACES: Mapping[Kind, type] = {
    Kind.STORAGE: Storage,
    Kind.OPTIMIZER: Optimizer,
    Kind.PLANNER: Planner,
    Kind.PROFILER: Profiler,
}


@frozen(kw_only=True)
class Provider:
    """Where a plugin comes from: its entry point's name, and the installed distribution that declares it."""

    plugin: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


@frozen(kw_only=True)
class Offer:
    """A backend that a run may choose."""

    kind: Kind
    backend: Backend[Any]
    provider: Provider

    def unusable(self) -> str | None:
        """Tell why this backend does not work on this machine, with the remedy; None if it does."""
        try:
            return self.backend.probe()
        except Exception as error:  # noqa: BLE001  # a stranger's probe must not take the listing down
            return f"its probe failed: {_one_line(error)}"


@frozen(kw_only=True)
class BrokenPlugin:
    """A plugin that could not be loaded or offers something invalid. None of its backends can be chosen."""

    provider: Provider
    reason: str


class Registry:
    """All offers, and all plugins that failed to make one."""

    def __init__(self) -> None:
        """Start empty; :func:`load_registry` makes the one that a run uses."""
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._offers: list[Offer] = []
        self._broken: list[BrokenPlugin] = []
        if os.environ.get(TRACE_VARIABLE) == "1":
            self._manager.trace.root.setwriter(sys.stderr.write)
            self._manager.enable_tracing()

    @property
    def offers(self) -> tuple[Offer, ...]:
        """Every backend that can be chosen, by kind, then name."""
        order = list(Kind)
        return tuple(sorted(self._offers, key=lambda offer: (order.index(offer.kind), offer.backend.name)))

    @property
    def broken(self) -> tuple[BrokenPlugin, ...]:
        """Every plugin that was left out, with the reason."""
        return tuple(self._broken)

    def add(self, provider: Provider, load: Callable[[], object]) -> None:
        """Take in the plugin that ``load`` imports; whatever goes wrong is recorded, never raised."""
        try:
            plugin = load()
            self._register(plugin, f"{provider.distribution}:{provider.plugin}")
            offers = self._collect(plugin, provider)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # a stranger's module may raise anything
            self._broken.append(BrokenPlugin(provider=provider, reason=_one_line(error)))
        else:
            self._offers.extend(offers)

    def find(self, kind: Kind, name: str) -> Backend[Any]:
        """Return the backend that is called ``name``.

        Raises:
            BackendError: there is none, or more than one.
        """
        named = [offer for offer in self._offers if offer.kind == kind and offer.backend.name == name]
        if len(named) > 1:
            providers = " and ".join(f"{offer.provider} (plugin {offer.provider.plugin!r})" for offer in named)
            raise BackendError(f"{kind} backend {name!r} is offered by {providers}; uninstall all but one")
        if not named:
            choices = {offer.backend.name for offer in self._offers if offer.kind == kind}
            raise self._unknown(f"no {kind} backend is called {name!r}", name, choices)
        return named[0].backend

    def named(self, name: str) -> tuple[Offer, ...]:
        """Return all offers of one name, whatever their kind.

        Raises:
            BackendError: there is none.
        """
        offers = tuple(offer for offer in self.offers if offer.backend.name == name)
        if not offers:
            choices = {offer.backend.name for offer in self._offers}
            raise self._unknown(f"no backend is called {name!r}", name, choices)
        return offers

    def _unknown(self, what: str, name: str, choices: Iterable[str]) -> BackendError:
        broken = "".join(f". Plugin {b.provider.plugin!r} of {b.provider} is broken: {b.reason}" for b in self._broken)
        return BackendError(f"{what}. {choose_one_of(name, choices)}{broken}")

    @overload
    def open_backend(self, kind: Literal[Kind.STORAGE], name: str, settings: object, **runtime: object) -> Storage: ...
    @overload
    def open_backend(
        self, kind: Literal[Kind.OPTIMIZER], name: str, settings: object, **runtime: object
    ) -> Optimizer: ...
    @overload
    def open_backend(self, kind: Literal[Kind.PLANNER], name: str, settings: object, **runtime: object) -> Planner: ...
    @overload
    def open_backend(
        self, kind: Literal[Kind.PROFILER], name: str, settings: object, **runtime: object
    ) -> Profiler: ...
    def open_backend(self, kind: Kind, name: str, settings: object, **runtime: object) -> object:
        """Open the backend ``name`` with ``settings``, an instance of its config class.

        ``runtime`` holds what no file can say; each kind's interface module lists it.

        Raises:
            BackendError: no such backend, it is not usable on this machine, or what it opens is none of its kind.
            TypeError: ``settings`` is not of the backend's config class.
        """
        backend = self.find(kind, name)
        if not isinstance(settings, backend.config):
            raise TypeError(f"{kind} backend {name!r} takes a {backend.config.__name__}, not {settings!r}")
        offer = next(offer for offer in self._offers if offer.backend is backend)
        if reason := offer.unusable():
            raise BackendError(f"{kind} backend {name!r} is not usable here: {reason}")
        whose = f"{kind} backend {name!r} of {offer.provider}"
        try:
            opened = backend.open(settings, **runtime)
        except LohanError:
            raise
        except Exception as error:
            error.add_note(f"raised by open() of {whose}")
            raise
        if not isinstance(opened, _INTERFACES[kind]):
            raise BackendError(f"open() of {whose} returned {opened!r}, which is no {_INTERFACES[kind].__name__}")
        return opened

    def _register(self, plugin: object, name: str) -> None:
        try:
            self._manager.register(plugin, name)
            self._manager.check_pending()
        except Exception as error:
            # pluggy keeps a plugin's name, and the hooks it came to, after validation failed.
            if self._manager.get_plugin(name) is plugin:
                self._manager.unregister(plugin)
            if isinstance(error, pluggy.PluginValidationError):
                hooks = ", ".join(_HOOK_OF_KIND.values())
                raise pluggy.PluginValidationError(plugin, f"{error}. Hooks take nothing: {hooks}") from error
            raise
        if not self._manager.get_hookcallers(plugin):
            raise TypeError("it implements no hook; decorate its hooks with lohan_core.hookspecs.hookimpl")

    def _collect(self, plugin: object, provider: Provider) -> list[Offer]:
        others = [other for other in self._manager.get_plugins() if other is not plugin]
        implemented = {caller.name for caller in self._manager.get_hookcallers(plugin) or ()}
        return [
            Offer(kind=kind, backend=_checked(record, kind, hook), provider=provider)
            for kind, hook in _HOOK_OF_KIND.items()
            if hook in implemented
            # pluggy leaves a None out.
            for records in self._manager.subset_hook_caller(hook, others)() or [None]
            for record in _iterated(records, hook)
        ]


def load_registry(group: Iterable[EntryPoint] | None = None) -> Registry:
    """Collect the core's reference backends and those of all installed plugins.

    Args:
        group: the entry points to load instead of the installed ones of the group ``lohan``.
    """
    registry = Registry()
    core = Provider(plugin="lohan_core", distribution="lohan", version=core_version())
    registry.add(core, lambda: import_module("lohan_core.reference"))
    for entry in sorted(entry_points(group=hookspecs.PROJECT) if group is None else group, key=lambda e: e.name):
        distribution = entry.dist
        provider = Provider(
            plugin=entry.name,
            distribution=distribution.name if distribution else "unknown",
            version=distribution.version if distribution else "unknown",
        )
        registry.add(provider, entry.load)
    return registry


def core_version() -> str:
    """Return the installed version of LoHan itself."""
    try:
        return version("lohan")
    except PackageNotFoundError:
        return "not installed"


def _iterated(records: object, hook: str) -> Iterable[object]:
    if not isinstance(records, Iterable):
        raise TypeError(f"{hook} returned {records!r}, want an iterable of Backend records")
    return records


def _checked(record: object, kind: Kind, hook: str) -> Backend[Any]:
    if not isinstance(record, Backend):
        raise TypeError(f"{hook} offered {record!r}, want a lohan_core.backend.Backend")
    if not attrs.has(record.config):
        raise TypeError(f"{hook} offered {record.name!r} whose config {record.config!r} is not an attrs class")
    if kind is Kind.OPTIMIZER and not issubclass(record.config, OptimizerConfig):
        raise TypeError(f"{hook} offered {record.name!r} whose config class does not derive from OptimizerConfig")
    if any(field.alias == "backend" for field in attrs.fields(record.config)):
        raise TypeError(f"{hook} offered {record.name!r} whose config class has the key backend, which picks a plugin")
    # A config class whose annotations name something that only type checkers import could never be read from a file.
    attrs.resolve_types(record.config)
    return record


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
