"""Tiny runs: their files, and what is read of them afterwards."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import command_line
import pytest
import yaml
from attrs import field, frozen

VOCABULARY = 96
PASSING = {"seconds", "tokens_per_second", "eval_seconds", "storage_read_bytes", "storage_write_bytes", "speculated"}
"""What no two runs have in common, or what differs from process to process: the first step of each has no deferred
updates to do, and the first four make none on speculation."""


@frozen
class SmallRun:
    """A run directory, with the config file that describes it."""

    folder: Path
    sections: Mapping[str, Mapping[str, Any]]
    directory: Path = field(init=False)
    config: Path = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        object.__setattr__(self, "directory", self.folder / "run")
        object.__setattr__(self, "config", self.folder / "config.yaml")
        self.config.write_text(yaml.safe_dump({name: dict(section) for name, section in self.sections.items()}))

    def start(self, *overrides: str, **options: Any) -> command_line.Running:
        """Start ``lohan train``."""
        return command_line.start(self._arguments(overrides), self.folder, **options)

    def train(self, *overrides: str, **options: Any) -> command_line.Ended:
        """Carry ``lohan train`` out."""
        return command_line.run(self._arguments(overrides), self.folder, **options)

    def export(self, name: str, dtype: str = "float32") -> command_line.Ended:
        """Carry ``lohan export`` out, to ``folder/name``."""
        return command_line.run(["export", self.directory, self.folder / name, "--dtype", dtype], self.folder)

    def profile(self) -> dict[str, Any]:
        """What ``lohan profile`` finds."""
        path = self.folder / "profile.json"
        ended = command_line.run(["profile", self.config, "--out", path], self.folder)
        assert ended.code == 0, ended
        profile: dict[str, Any] = json.loads(path.read_text())
        return profile

    def metrics(self) -> list[dict[str, Any]]:
        """The metrics file's objects."""
        return read_metrics(self.directory)

    def events(self, name: str) -> list[tuple[int, float]]:
        """Step and value of all TensorBoard events of a name."""
        accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        accumulator = accumulators.EventAccumulator(str(self.directory / "tensorboard"))
        accumulator.Reload()
        return [(event.step, event.value) for event in accumulator.Scalars(name)]

    def steps(self) -> int:
        """Steps of which the metrics tell."""
        return sum("loss" in entry for entry in self.metrics())

    def manifest(self) -> dict[str, Any]:
        """The store's manifest, its body."""
        return json.loads((self.directory / "store" / "manifest.json").read_text())["body"]

    def extents(self) -> list[Path]:
        """The files in the run directory that hold states."""
        return sorted((self.directory / "store" / "extents").rglob("*.extent"))

    def files(self) -> dict[str, bytes]:
        """The bytes of every file in the run directory but the lock, which says who held it last."""
        return {
            str(path.relative_to(self.directory)): path.read_bytes()
            for path in sorted(self.directory.rglob("*"))
            if path.is_file() and path.name != "lock"
        }

    def outcome(self) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
        """What must be the same however often a run was stopped: losses, norms, rates, and the model's bytes."""
        entries = [{key: value for key, value in entry.items() if key not in PASSING} for entry in self.metrics()]
        return entries, {path.name: path.read_bytes() for path in sorted((self.directory / "model").iterdir())}

    def _arguments(self, overrides: Sequence[str]) -> list[object]:
        return ["train", self.config, *(part for override in overrides for part in ("--set", override))]


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The objects of a run directory's metrics; none while there is no file."""
    path = directory / "metrics.jsonl"
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def write_samples(path: Path, samples: int, seed: int = 0) -> Path:
    """Write a data file of token ids."""
    dice = random.Random(seed)
    lines = [
        json.dumps({"input_ids": [dice.randrange(3, VOCABULARY) for _ in range(dice.randint(5, 22))]})
        for _ in range(samples)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def merged(
    sections: Mapping[str, Mapping[str, Any]], changes: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return ``sections`` with some keys changed."""
    return {name: {**sections.get(name, {}), **changes.get(name, {})} for name in {**sections, **changes}}
