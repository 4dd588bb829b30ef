from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest
from attrs import frozen

from lohan_core.backend import Backend, Kind
from lohan_core.errors import BackendError
from lohan_core.hookspecs import hookimpl
from lohan_core.interfaces.planner import Planner
from lohan_core.registry import Provider, Registry, load_registry


@frozen(kw_only=True)
class Settings:
    size: int = 1


@frozen(kw_only=True)
class PickySettings(Settings):
    backend: str = "mine"


@frozen
class Opened(Planner):
    name: str
    config: Settings
    runtime: dict

    def plan(self, profile, budget, workload):
        raise NotImplementedError


def a_backend(name, **changes):
    fields = {
        "summary": "a test's",
        "config": Settings,
        "open": lambda config, **runtime: Opened(name, config, runtime),
    }
    return Backend(**({"name": name} | fields | changes))


def a_plugin(**hooks):
    """A module whose hooks return what is given, or raise it."""

    def hook(offer):
        def call():
            if isinstance(offer, Exception):
                raise offer
            return offer

        return hookimpl(call)

    module = ModuleType("a_plugin")
    for name, offer in hooks.items():
        setattr(module, name, hook(offer))
    return module


def provider(plugin="p", distribution="dist", version="1.0"):
    return Provider(plugin=plugin, distribution=distribution, version=version)


def registry_of(**plugins):
    registry = Registry()
    for name, plugin in plugins.items():
        registry.add(provider(name, f"dist-{name}"), lambda plugin=plugin: plugin)
    return registry


def fails_to_import():
    raise ImportError("libmissing.so.1:\n  cannot open shared object file")


def exits():
    raise SystemExit(3)


def raises_late():
    yield a_backend("first")
    raise RuntimeError("halfway")


def misspelt():
    return a_plugin(lohan_storag=[a_backend("x")])


def without_marker():
    module = ModuleType("unmarked")
    module.lohan_storage = lambda: [a_backend("x")]
    return module


def with_argument():
    module = ModuleType("argument")
    module.lohan_storage = hookimpl(lambda directory: [a_backend(directory)])
    return module


@frozen
class UnreadableSettings:
    where: NotImportedAnywhere  # noqa: F821  # as under TYPE_CHECKING


BROKEN = {
    "import error": (fails_to_import, "ImportError: libmissing.so.1: cannot open shared object file"),
    "exit at import": (exits, "SystemExit: 3"),
    "hook raises": (lambda: a_plugin(lohan_storage=RuntimeError("no")), "RuntimeError: no"),
    "generator raises": (lambda: a_plugin(lohan_storage=raises_late()), "RuntimeError: halfway"),
    "not iterable": (lambda: a_plugin(lohan_storage=a_backend("x")), "lohan_storage returned .* want an iterable"),
    "not a backend": (lambda: a_plugin(lohan_planner=["x"]), "lohan_planner offered 'x', want a .*Backend"),
    "config not attrs": (lambda: a_plugin(lohan_planner=[a_backend("x", config=dict)]), "'x' .* not an attrs class"),
    "config unreadable": (
        lambda: a_plugin(lohan_planner=[a_backend("x", config=UnreadableSettings)]),
        "NameError: .*NotImportedAnywhere",
    ),
    "hook returns None": (lambda: a_plugin(lohan_storage=None), "lohan_storage returned None, want an iterable"),
    "an optimizer's config": (lambda: a_plugin(lohan_optimizer=[a_backend("x")]), "not derive from OptimizerConfig"),
    "config with a key backend": (
        lambda: a_plugin(lohan_planner=[a_backend("x", config=PickySettings)]),
        "'x' whose config class has the key backend",
    ),
    "misspelt hook": (misspelt, "unknown hook 'lohan_storag'.*lohan_storage, lohan_optimizer"),
    "no hookimpl": (without_marker, "implements no hook"),
    "hook with an argument": (with_argument, "PluginValidationError: .*directory"),
}


@pytest.mark.parametrize(("load", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_recorded_in_one_line_and_harms_no_other(load, reason):
    registry = Registry()
    registry.add(provider("before"), lambda: a_plugin(lohan_storage=[a_backend("early")]))
    registry.add(provider("broken", "stranger", "0.3"), load)
    registry.add(provider("after"), lambda: a_plugin(lohan_storage=[a_backend("late")]))

    (broken,) = registry.broken
    assert broken.provider == provider("broken", "stranger", "0.3")
    assert "\n" not in broken.reason
    assert re.search(reason, broken.reason)
    assert [offer.backend.name for offer in registry.offers] == ["early", "late"]
    assert registry.find(Kind.STORAGE, "late").name == "late"
    with pytest.raises(BackendError, match=r"Plugin 'broken' of stranger 0\.3 is broken: "):
        registry.find(Kind.STORAGE, "x")


def test_an_interrupt_during_loading_is_not_swallowed():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Registry().add(provider(), interrupted)


def test_a_plugin_may_offer_several_backends_of_several_kinds():
    registry = registry_of(
        many=a_plugin(lohan_profiler=[a_backend("p")], lohan_storage=iter([a_backend("b"), a_backend("a")]))
    )
    assert [(offer.kind, offer.backend.name) for offer in registry.offers] == [
        (Kind.STORAGE, "a"),
        (Kind.STORAGE, "b"),
        (Kind.PROFILER, "p"),
    ]
    assert not registry.broken


def test_plugins_of_one_name_from_two_distributions_live_side_by_side():
    registry = Registry()
    registry.add(provider("same", "one"), lambda: a_plugin(lohan_storage=[a_backend("a")]))
    registry.add(provider("same", "two"), lambda: a_plugin(lohan_storage=[a_backend("b")]))
    assert [offer.provider.distribution for offer in registry.offers] == ["one", "two"]


def test_an_unknown_name_is_answered_with_the_nearest_and_with_all():
    registry = registry_of(p=a_plugin(lohan_storage=[a_backend("aio"), a_backend("memory")]))
    with pytest.raises(BackendError) as raised:
        registry.find(Kind.STORAGE, "memroy")
    assert str(raised.value) == (
        "no storage backend is called 'memroy'. Did you mean 'memory'? Choose one of: aio, memory"
    )


def test_a_name_of_another_kind_is_unknown():
    registry = registry_of(p=a_plugin(lohan_storage=[a_backend("aio")]))
    with pytest.raises(BackendError, match=r"no planner backend is called 'aio'\. There are none to choose from"):
        registry.find(Kind.PLANNER, "aio")


def test_two_providers_of_one_name_are_both_named():
    registry = registry_of(
        a=a_plugin(lohan_storage=[a_backend("aio")]), b=a_plugin(lohan_storage=[a_backend("aio"), a_backend("other")])
    )
    with pytest.raises(BackendError, match=r"dist-a 1\.0 \(plugin 'a'\) and dist-b 1\.0 \(plugin 'b'\)"):
        registry.find(Kind.STORAGE, "aio")
    assert registry.find(Kind.STORAGE, "other").name == "other"


def test_opening_passes_settings_and_runtime_objects():
    registry = registry_of(p=a_plugin(lohan_planner=[a_backend("o")]))
    opened = registry.open_backend(Kind.PLANNER, "o", Settings(size=3), threads=2)
    assert opened == Opened("o", Settings(size=3), {"threads": 2})


def test_what_is_opened_is_of_its_kind():
    registry = registry_of(p=a_plugin(lohan_planner=[a_backend("o", open=lambda config: None)]))  # noqa: ARG005
    with pytest.raises(BackendError, match=r"planner backend 'o' of dist-p 1\.0 returned None, which is no Planner"):
        registry.open_backend(Kind.PLANNER, "o", Settings())


def test_an_error_of_a_strangers_code_names_the_stranger():
    def opens(_):
        raise ZeroDivisionError

    registry = registry_of(p=a_plugin(lohan_planner=[a_backend("o", open=opens)]))
    with pytest.raises(ZeroDivisionError) as caught:
        registry.open_backend(Kind.PLANNER, "o", Settings())
    assert caught.value.__notes__ == ["raised by open() of planner backend 'o' of dist-p 1.0"]


def test_opening_refuses_settings_of_another_class():
    registry = registry_of(p=a_plugin(lohan_planner=[a_backend("o")]))
    with pytest.raises(TypeError, match="takes a Settings"):
        registry.open_backend(Kind.PLANNER, "o", {"size": 3}, threads=2)


def test_opening_what_is_not_usable_gives_the_reason():
    registry = registry_of(p=a_plugin(lohan_storage=[a_backend("gds", probe=lambda: "no driver; install nvidia-fs")]))
    with pytest.raises(BackendError, match="'gds' is not usable here: no driver; install nvidia-fs"):
        registry.open_backend(Kind.STORAGE, "gds", Settings())


def test_a_probe_that_raises_makes_its_backend_unusable_only():
    def probe():
        raise OSError("\n no such device")

    registry = registry_of(p=a_plugin(lohan_storage=[a_backend("bad", probe=probe), a_backend("good")]))
    bad, good = registry.offers
    assert bad.unusable() == "its probe failed: OSError: no such device"
    assert good.unusable() is None


def test_entry_points_are_loaded_with_their_distribution(tmp_path, monkeypatch):
    (tmp_path / "stranger_plugin.py").write_text(
        "from attrs import frozen\n"
        "from lohan_core.backend import Backend\n"
        "from lohan_core.hookspecs import hookimpl\n"
        "@frozen\n"
        "class Nothing: ...\n"
        "@hookimpl\n"
        "def lohan_planner():\n"
        "    yield Backend(name='theirs', summary='', config=Nothing, open=Nothing)\n"
    )
    info = tmp_path / "stranger-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 2.5\n")
    (info / "entry_points.txt").write_text("[lohan]\nmine = stranger_plugin\n")
    monkeypatch.syspath_prepend(tmp_path)

    (offer,) = [offer for offer in load_registry().offers if offer.backend.name == "theirs"]
    assert offer.kind is Kind.PLANNER
    assert offer.provider == Provider(plugin="mine", distribution="stranger", version="2.5")


def test_an_entry_point_that_names_no_module_is_broken_not_fatal():
    registry = load_registry([EntryPoint(name="gone", value="no_such_module_anywhere", group="lohan")])
    (broken,) = registry.broken
    assert broken.provider.plugin == "gone"
    assert broken.reason == "ModuleNotFoundError: No module named 'no_such_module_anywhere'"


def test_the_reference_backends_are_always_there():
    offers = load_registry([]).offers
    assert {offer.kind for offer in offers} == set(Kind)
    assert {offer.provider.plugin for offer in offers} == {"lohan_core"}
    assert all(offer.unusable() is None for offer in offers)


def test_hook_calls_are_traced_on_request(monkeypatch, capsys):
    monkeypatch.setenv("LOHAN_TRACE_HOOKS", "1")
    load_registry([])
    traced = capsys.readouterr().err
    for kind in Kind:
        assert f"lohan_{kind}" in traced


def test_hook_calls_are_not_traced_otherwise(monkeypatch, capsys):
    monkeypatch.delenv("LOHAN_TRACE_HOOKS", raising=False)
    load_registry([])
    assert capsys.readouterr().err == ""


def test_registration_and_probes_import_nothing_heavy():
    script = (
        "import sys\n"
        "from lohan_core.registry import load_registry\n"
        "[offer.unusable() for offer in load_registry().offers]\n"
        "import lohan_core.cli.app\n"
        "heavy = {'torch', 'transformers', 'numpy', 'tokenizers', 'accelerate'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-P", "-c", script], check=True)
