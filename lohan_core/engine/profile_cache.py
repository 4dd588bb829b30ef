"""Profiles that were measured before, in the user's cache directory: a file for each machine, model and batch."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Self

import psutil
import torch
from attrs import frozen

from lohan_core.engine.measure import machine_name
from lohan_core.errors import ConfigError
from lohan_core.interfaces.profiler import Subject
from lohan_core.profile import Profile
from lohan_core.schedule.sizes import sums_in_fp32

__all__ = ["ProfileCache"]

_log = logging.getLogger(__name__)

VERSION = 8
"""Of what is measured, and how it is written. A profile of another version is measured anew."""


PACKAGES = ("transformers", "flash-attn", "liger-kernel", "triton")
"""What decides, beside torch, which operators and updates run."""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@frozen
class ProfileCache:
    """A directory of profiles, named by what they are of."""

    directory: Path

    @classmethod
    def of_user(cls) -> Self:
        """Return the one of the user who runs this: ``$XDG_CACHE_HOME/lohan/profiles``."""
        home = os.environ.get("XDG_CACHE_HOME", "")
        return cls((Path(home) if home else Path.home() / ".cache") / "lohan" / "profiles")

    def key(self, subject: Subject, *, seconds: float) -> str:
        """Name what a profile depends on: machine, software, backends, model, batch, and how long was measured."""
        model, inputs = subject.model, subject.batch.micro_batches[0]
        facts = {
            "version": VERSION,
            "machine": [platform.node(), platform.machine(), psutil.cpu_count(), psutil.virtual_memory().total],
            "device": [str(model.device), machine_name(model.device)],
            "software": [torch.__version__, torch.get_num_threads(), *map(_version, PACKAGES)],
            "storage": subject.storage.describe(),
            "optimizer": subject.optimizer.describe(),
            "model": [str(model.dtype), model.attention, model.loss, model.model.config.to_json_string(use_diff=False)],
            "compiled": model.compiled is not None,
            "batch": {name: list(tensor.shape) for name, tensor in inputs.items()},
            "sums": sums_in_fp32(len(subject.batch.micro_batches), model.dtype.itemsize),
            "chunk_elements": subject.chunk_elements,
            "seconds": seconds,
        }
        return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()

    def get(self, key: str) -> Profile | None:
        """Return the profile of this key; None if there is none that can be read."""
        path = self._path(key)
        try:
            return Profile.from_json(path.read_text(encoding="utf-8"), source=str(path))
        except (OSError, UnicodeDecodeError, ConfigError):
            return None

    def put(self, key: str, profile: Profile) -> None:
        """Keep a profile: whole or not at all, also when two processes write the same one.

        A directory that cannot be written is no reason not to train: it is logged, and the next run measures again.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.directory, suffix=".new", delete=False) as file:
                file.write(profile.to_json())
            Path(file.name).replace(self._path(key))
        except OSError as error:
            _log.warning("%s: the profile is not kept: %s", self.directory, error.strerror)

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}.json"
