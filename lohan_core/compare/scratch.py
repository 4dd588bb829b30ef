"""Run directories that last as long as a comparison: for each planner a store of its own, made from the model anew."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from attrs import evolve

from lohan_core.backend import Kind
from lohan_core.config.sections import BackendChoice, Config
from lohan_core.durable_files import make_directory_durably, replace_durably
from lohan_core.engine.parts import open_storage, store_path
from lohan_core.profile import Profile
from lohan_core.reference.profilers import FileProfilerConfig
from lohan_core.registry import Registry
from lohan_core.store import StoreDirectory

__all__ = ["scratch_config", "scratch_folder"]

FOLDER = "compare"
PROFILE = "profile.json"


def scratch_config(directory: Path, config: Config, profile: Profile) -> Config:
    """Make the config of a run in ``directory``, which takes ``profile`` for granted instead of measuring."""
    path = directory.parent / PROFILE
    replace_durably(path, profile.to_json().encode())
    profiler = BackendChoice(kind=Kind.PROFILER, name="file", settings=FileProfilerConfig(path=path))
    return evolve(config, run=evolve(config.run, dir=directory), profiler=profiler)


@contextmanager
def scratch_folder(config: Config, registry: Registry) -> Iterator[Path]:
    """Make a folder below the run's own, and give back everything in it at the end.

    What an earlier comparison left that was killed is given back first.

    Raises:
        LohanError: the folder cannot be made, or another comparison is using it.
    """
    folder = config.run.dir / FOLDER
    _give_back(folder, config, registry)
    make_directory_durably(folder)
    try:
        yield folder
    finally:
        _give_back(folder, config, registry)


def _give_back(folder: Path, config: Config, registry: Registry) -> None:
    """Free the extents of every run in the folder, which may lie on other drives, then remove the folder."""
    for directory in folder.glob("*/"):
        path = store_path(evolve(config, run=evolve(config.run, dir=directory)))
        if not path.is_dir():
            continue
        with closing(StoreDirectory.at(path)) as held, closing(open_storage(config, registry, held)) as storage:
            for name in list(storage.extents()):
                storage.free(name)
    if folder.exists():
        shutil.rmtree(folder)
