"""What the entry point names: the hooks. Every ``lohan`` command imports it, so it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from attrs import field, frozen
from attrs.validators import ge

from lohan_core.hookspecs import hookimpl
from lohan_core.interfaces.planner import Planner, PlannerBackend
from lohan_core.interfaces.storage import Storage, StorageBackend


@frozen(kw_only=True)
class PlainFilesConfig:
    """What a config file may say under ``storage`` beside ``backend: plain_files``.

    Attributes:
        directory: Where extents are kept; `null`: inside the run directory.
        threads: Transfers that are carried out at a time.
    """

    directory: Path | None = None
    threads: int = field(default=4, validator=ge(1))


@frozen(kw_only=True)
class KeepCostlyConfig:
    """The planner has no settings."""


def _open_storage(config: PlainFilesConfig, *, namespace: str, default_directory: Path) -> Storage:
    from lohan_plugin_template.storage import PlainFiles

    return PlainFiles(Path(config.directory or default_directory) / namespace, config.threads)


def _open_planner(config: KeepCostlyConfig) -> Planner:
    from lohan_plugin_template.planner import KeepCostly

    del config
    return KeepCostly()


PLAIN_FILES: StorageBackend = StorageBackend(
    name="plain_files",
    summary="one plain file for each extent, through the page cache",
    config=PlainFilesConfig,
    open=_open_storage,
)

KEEP_COSTLY: PlannerBackend = PlannerBackend(
    name="keep_costly",
    summary="keeps in host memory the outputs that cost most time per byte, as many as fit",
    config=KeepCostlyConfig,
    open=_open_planner,
)


@hookimpl
def lohan_storage() -> Iterable[StorageBackend]:
    """Offer ``plain_files``."""
    yield PLAIN_FILES


@hookimpl
def lohan_planner() -> Iterable[PlannerBackend]:
    """Offer ``keep_costly``."""
    yield KEEP_COSTLY
