from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
from attrs import evolve, field, frozen
from attrs.validators import ge, in_
from hypothesis import given, settings
from hypothesis import strategies as st

from lohan_core.backend import Backend
from lohan_core.config import (
    BackendChoice,
    ComputeDtype,
    Config,
    DataConfig,
    Durability,
    FirstWeights,
    MemoryConfig,
    ModelConfig,
    RunConfig,
    config_from_mapping,
    dump_config,
    load_config,
)
from lohan_core.errors import ConfigError
from lohan_core.hookspecs import hookimpl
from lohan_core.interfaces.optimizer import LearningRateSchedule, OptimizerConfig
from lohan_core.plan import Update
from lohan_core.registry import Provider, Registry
from lohan_core.units import Bytes

MINIMAL = """\
model:
  path: model
data:
  train: train.jsonl
run:
  dir: out
  steps: 10
"""


class Engine(StrEnum):
    FAST = "fast"
    SLOW = "slow"


@frozen(kw_only=True)
class Inner:
    depth: int = field(default=1, validator=ge(1))
    where: Path | None = None


@frozen(kw_only=True)
class DiskConfig:
    directories: tuple[Path, ...] = ()
    engine: Engine = Engine.FAST
    stripe: Bytes = field(default=Bytes(2**20))
    limit: Bytes | None = None
    label: str = ""
    level: Literal["low", "high"] = "low"
    weights: dict[str, float] = field(factory=dict)
    inner: Inner | None = None
    tags: frozenset[str] = frozenset()


@frozen(kw_only=True)
class AdamConfig(OptimizerConfig):
    betas: tuple[float, float] = (0.9, 0.999)


@frozen
class Empty:
    pass


@frozen
class Demanding:
    file: Path
    mode: str = field(default="a", validator=in_(("a", "b")))

    def __attrs_post_init__(self):
        if self.mode == "b" and self.file.suffix != ".json":
            raise ValueError("mode b wants a .json file")


@frozen
class Odd:
    value: int | str = 0
    several: tuple[Inner, ...] = ()


def a_registry():
    def offering(*names_and_configs):
        return hookimpl(
            lambda: [Backend(name=n, summary="", config=c, open=lambda config: config) for n, c in names_and_configs]
        )

    plugin = ModuleType("plugin")
    plugin.lohan_storage = offering(("aio", DiskConfig), ("memory", Empty))
    plugin.lohan_optimizer = offering(("cpuadam", AdamConfig))
    plugin.lohan_planner = offering(("greedy", Empty), ("odd", Odd))
    plugin.lohan_profiler = offering(("measured", Empty), ("file", Demanding))
    registry = Registry()
    registry.add(Provider(plugin="p", distribution="d", version="1"), lambda: plugin)
    assert not registry.broken
    return registry


REGISTRY = a_registry()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "config.yaml"


def load(file, text, *overrides):
    file.write_text(text)
    return load_config(file, overrides, REGISTRY)


def errors(file, text, *overrides):
    with pytest.raises(ConfigError) as raised:
        load(file, text, *overrides)
    return [line.replace(f"{file}", "FILE") for line in str(raised.value).split("\n")]


def test_a_minimal_file_gets_documented_defaults(file):
    config = load(file, MINIMAL)
    assert config.run == RunConfig(dir=file.parent / "out", steps=10)
    assert config.run.device == "auto"
    assert config.run.dtype is ComputeDtype.BFLOAT16
    assert config.memory == MemoryConfig()
    assert [config.storage.name, config.optimizer.name, config.planner.name, config.profiler.name] == [
        "aio",
        "cpuadam",
        "greedy",
        "measured",
    ]
    assert config.optimizer.settings == AdamConfig()


def test_values_are_read_as_their_types(file):
    config = load(
        file,
        MINIMAL
        + "  dtype: float32\n  update: serial\n  durability: none\n  batch_size: 1e1\n  micro_batch_size: 5\n"
        + "memory: {gpu: 24GiB, host: 60GB, ssd: 1000000, chunk: 16MiB}\n"
        + "optimizer: {lr: 1e-4, betas: [9e-1, 1], schedule: cosine, max_grad_norm: null}\n"
        + "storage: {engine: slow, stripe: 1.5MiB, limit: 1GB, label: '7', level: high, "
        + "weights: {a: 1e-2}, tags: [b, a]}\n",
    )
    assert config.run.dtype is ComputeDtype.FLOAT32
    assert config.run.update is Update.SERIAL
    assert config.run.durability is Durability.NONE
    assert (config.run.batch_size, config.run.micro_batch_size) == (10, 5)
    assert config.memory == MemoryConfig(
        gpu=Bytes(24 * 2**30), host=Bytes(60 * 10**9), ssd=Bytes(10**6), chunk=Bytes(2**24)
    )
    assert config.optimizer.settings == AdamConfig(
        lr=1e-4, betas=(0.9, 1.0), schedule=LearningRateSchedule.COSINE, max_grad_norm=None
    )
    assert config.storage.settings == DiskConfig(
        engine=Engine.SLOW,
        stripe=Bytes(3 * 2**19),
        limit=Bytes(10**9),
        label="7",
        level="high",
        weights={"a": 0.01},
        tags=frozenset({"a", "b"}),
    )


def test_relative_paths_start_from_the_file_or_from_where_the_override_was_typed(file, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", "/home/someone")
    config = load(
        file,
        MINIMAL + "storage: {directories: [fast, /nvme0, ~/slow], inner: {where: deep}}\n",
        "data.eval=eval.jsonl",
    )
    assert config.model.path == tmp_path / "model"
    assert config.data.eval == elsewhere / "eval.jsonl"
    assert config.storage.settings == DiskConfig(
        directories=(tmp_path / "fast", Path("/nvme0"), Path("/home/someone/slow")),
        inner=Inner(where=tmp_path / "deep"),
    )


def test_a_file_named_relatively_still_gives_absolute_paths(file, monkeypatch):
    file.write_text(MINIMAL)
    monkeypatch.chdir(file.parent)
    config = load_config(Path(file.name), (), REGISTRY)
    assert config.run.dir == file.parent / "out"


@pytest.mark.parametrize(
    ("addition", "line"),
    [
        ("  stpes: 3\n", "FILE:8: run.stpes: unknown key. Did you mean 'steps'? Choose one of: batch_size, "),
        ("memroy: {}\n", "FILE:8: memroy: unknown section. Did you mean 'memory'? Choose one of: data, memory, "),
        ("  batch_size: many\n", "FILE:8: run.batch_size: wants a whole number, got 'many'"),
        ("  batch_size: 0\n", "FILE:8: run.batch_size: must be >= 1: 0"),
        ("  batch_size: true\n", "FILE:8: run.batch_size: wants a whole number, got True"),
        ("  batch_size: 1.5\n", "FILE:8: run.batch_size: wants a whole number, got 1.5"),
        ("  batch_size:\n", "FILE:8: run.batch_size: wants a whole number, got None"),
        (
            "  micro_batch_size: 2\n  batch_size: 3\n",
            "FILE:8: run.micro_batch_size: must divide batch_size (3), which 2 does not",
        ),
        ("  device: gpu\n", "FILE:8: run.device: must be auto, cpu, cuda or cuda:N: 'gpu'"),
        ("  dtype: bf16\n", "FILE:8: run.dtype: got 'bf16'. Did you mean 'bfloat16'? Choose one of: bfloat16, float32"),
        ("  tensorboard: 1\n", "FILE:8: run.tensorboard: wants true or false, got 1"),
        ("  dir: 7\n", "FILE:8: run.dir is given twice; first at FILE:6"),
        ("  eval_every: 5\n", "FILE:8: run.eval_every: needs data.eval, the file to evaluate on"),
        ("memory:\n  gpu: 24 gigs\n", "FILE:9: memory.gpu: got '24 gigs': the unit must be one of B, kB, "),
        ("memory:\n  gpu: 0\n", "FILE:9: memory.gpu: must be > 0: 0"),
        ("memory:\n  chunk: 20000\n", "FILE:9: memory.chunk: must be a multiple of 16384 bytes, which 20000 is not"),
        ("memory: 24GiB\n", "FILE:8: memory: wants keys with values, got '24GiB'"),
        ("optimizer:\n  lr: 0\n", "FILE:9: optimizer.lr: must be > 0.0: 0.0"),
        ("optimizer:\n  lr: fast\n", "FILE:9: optimizer.lr: wants a number, got 'fast'"),
        ("optimizer:\n  lr: .inf\n", "FILE:9: optimizer.lr: wants a number, got inf"),
        ("optimizer:\n  betas: [0.9]\n", "FILE:9: optimizer.betas: wants a list of 2, got 1: [0.9]"),
        ("optimizer:\n  betas: [0.9, x]\n", "FILE:9: optimizer.betas: item 2: wants a number, got 'x'"),
        (
            "optimizer:\n  learning_rate: 1\n",
            "FILE:9: optimizer.learning_rate: unknown key. Choose one of: betas, lr, ",
        ),
        ("optimizer:\n  schedule: cosin\n", "FILE:9: optimizer.schedule: got 'cosin'. Did you mean 'cosine'? Choose "),
        (
            "storage:\n  directories: /nvme0\n",
            "FILE:9: storage.directories: wants a list, got one text; write [/nvme0]",
        ),
        ("storage:\n  directories: 3\n", "FILE:9: storage.directories: wants a list, got 3"),
        ("storage:\n  directories: [3]\n", "FILE:9: storage.directories: item 1: wants a path, got 3"),
        ("storage:\n  directories: ['']\n", "FILE:9: storage.directories: item 1: wants a path, got nothing"),
        ("storage:\n  label: 7\n", "FILE:9: storage.label: wants text, got 7; put it in quotes"),
        (
            "storage:\n  level: hihg\n",
            "FILE:9: storage.level: got 'hihg'. Did you mean 'high'? Choose one of: high, low",
        ),
        ("storage:\n  weights: {a: x}\n", "FILE:9: storage.weights: a: wants a number, got 'x'"),
        ("storage:\n  weights: 3\n", "FILE:9: storage.weights: wants keys with values, got 3"),
        ("storage:\n  tags: fast\n", "FILE:9: storage.tags: wants a list, got one text; write [fast]"),
        ("storage:\n  tags: [1]\n", "FILE:9: storage.tags: item 1: wants text, got 1; put it in quotes"),
        ("storage:\n  inner:\n    depth: 0\n", "FILE:10: storage.inner.depth: must be >= 1: 0"),
        ("storage:\n  inner:\n    dept: 0\n", "FILE:10: storage.inner.dept: unknown key. Did you mean 'depth'? "),
        ("storage:\n  inner: 3\n", "FILE:9: storage.inner: wants keys with values, got 3"),
        (
            "storage:\n  backend: aoi\n",
            "FILE:9: storage.backend: no storage backend is called 'aoi'. Did you mean 'aio'?",
        ),
        (
            "storage:\n  backend: [1]\n",
            "FILE:9: storage.backend: no storage backend is called [1]. Choose one of: aio, ",
        ),
        ("profiler:\n  backend: file\n", "FILE:8: profiler.file: is missing, and has no default"),
        (
            "profiler: {backend: file, file: x.txt, mode: c}\n",
            "FILE:8: profiler.mode: must be in ('a', 'b') (got 'c')",
        ),
        ("profiler: {backend: file, file: x.txt, mode: b}\n", "FILE:8: profiler: mode b wants a .json file"),
        ("planner: {backend: odd, several: [{}]}\n", "FILE:8: planner.several: its type tuple["),
        ("planner: {backend: odd, value: 3}\n", "FILE:8: planner.value: its type int | str in Odd cannot be read"),
    ],
)
def test_a_mistake_is_one_line_with_file_line_key_and_reason(file, addition, line):
    (found,) = errors(file, MINIMAL + addition)
    assert found.startswith(line)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("model: [\n", "FILE:2: not YAML: "),
        ("- a\n", "FILE: wants sections with keys, got list"),
        ("a: 1\na: 2\n", "FILE:2: a is given twice; first at FILE:1"),
        ("a: !!python/object:os.system {}\n", "FILE:1: not YAML: could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_mapping_is_one_line(file, text, line):
    (found,) = errors(file, text)
    assert found.startswith(line)


def test_all_mistakes_are_shown_at_once(file):
    choices = "Choose one of: attention, compile, loss, path, trust_remote_code, weights"
    found = errors(file, "model: {path: m, pth: n}\ndata: {}\nrun: {dir: 1, steps: x}\n", "optimizer.lr=-1")
    assert found == [
        "FILE:1: model.pth: unknown key. Did you mean 'path'? " + choices,
        "FILE:2: data.train: is missing, and has no default",
        "FILE:3: run.dir: wants a path, got 1; put it in quotes",
        "FILE:3: run.steps: wants a whole number, got 'x'",
        "--set optimizer.lr=-1: optimizer.lr: must be > 0.0: -1.0",
    ]


def test_an_empty_file_lacks_the_required_keys(file):
    assert [line.split(": ")[1] for line in errors(file, "")] == ["model.path", "data.train", "run.dir", "run.steps"]


@pytest.mark.parametrize("name", ["absent.yaml", "."])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, name):
    with pytest.raises(ConfigError, match=r"cannot read the config file: (No such file|Is a directory)"):
        load_config(tmp_path / name, (), REGISTRY)


def test_a_file_that_is_not_text_is_one_line(file):
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read the config file: it is not UTF-8 text"):
        load_config(file, (), REGISTRY)


def test_overrides_win_in_order_and_are_yaml(file):
    config = load(
        file,
        MINIMAL + "optimizer: {lr: 1}\n",
        "optimizer.lr=2",
        "optimizer.lr=3e-5",
        "optimizer.betas=[0.8, 0.9]",
        "storage.inner.depth=4",
        "memory.gpu=2GiB",
        "data.shuffle=false",
    )
    assert config.optimizer.settings == AdamConfig(lr=3e-5, betas=(0.8, 0.9))
    assert config.storage.settings == DiskConfig(inner=Inner(depth=4))
    assert config.memory.gpu == 2 * 2**30
    assert config.data.shuffle is False


def test_an_override_may_replace_a_section_to_change_its_backend(file):
    text = MINIMAL + "storage: {directories: [/nvme0]}\n"
    (found,) = errors(file, text, "storage.backend=memory")
    assert found.startswith("FILE:8: storage.directories: unknown key")
    assert load(file, text, "storage={backend: memory}").storage.settings == Empty()


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("run.steps", "--set run.steps: write section.key=value"),
        ("run..steps=1", "--set run..steps=1: write section.key=value"),
        ("=1", "--set =1: write section.key=value"),
        ("run.steps=[", "--set run.steps=[: the value is not YAML: "),
        ("run.steps.many=1", "--set run.steps.many=1: run.steps has no keys"),
        ("run.step=1", "--set run.step=1: run.step: unknown key. Did you mean 'steps'? "),
        ("optimzer.lr=1", "--set optimzer.lr=1: optimzer: unknown section. Did you mean 'optimizer'? "),
        ("optimizer.lr=-1", "--set optimizer.lr=-1: optimizer.lr: must be > 0.0: -1.0"),
        ("storage.backend=x", "--set storage.backend=x: storage.backend: no storage backend is called 'x'. "),
    ],
)
def test_a_wrong_override_names_itself(file, override, line):
    (found,) = errors(file, MINIMAL, override)
    assert found.startswith(line)


def test_values_from_python_are_checked_alike(tmp_path):
    values = {"model": {"path": "m"}, "data": {"train": "t"}, "run": {"dir": "r", "steps": 1}}
    config = config_from_mapping(values, REGISTRY, tmp_path)
    assert config.model.path == tmp_path / "m"
    with pytest.raises(ConfigError, match=r"^config: run\.steps: must be >= 1: 0$"):
        config_from_mapping(values | {"run": {"dir": "r", "steps": 0}}, REGISTRY)


names = st.text(st.characters(codec="utf-8", exclude_characters="/\0~"), min_size=1, max_size=8)
paths = st.lists(names, min_size=1, max_size=3).map(lambda parts: Path("/", *parts))
positive = st.integers(min_value=1, max_value=2**60)
maybe_size = st.none() | positive.map(Bytes)
floats = st.floats(min_value=1e-300, max_value=1e300)


@st.composite
def configs(draw):
    micro = draw(st.integers(min_value=1, max_value=64))
    evaluation = draw(st.none() | paths)
    return Config(
        model=ModelConfig(
            path=draw(paths), weights=draw(st.sampled_from(FirstWeights)), trust_remote_code=draw(st.booleans())
        ),
        data=DataConfig(
            train=draw(paths),
            eval=evaluation,
            sequence_length=draw(st.integers(min_value=2, max_value=2**20)),
            packing=draw(st.booleans()),
            shuffle=draw(st.booleans()),
        ),
        run=RunConfig(
            dir=draw(paths),
            steps=draw(positive),
            batch_size=micro * draw(st.integers(min_value=1, max_value=64)),
            micro_batch_size=micro,
            seed=draw(positive),
            device=draw(st.sampled_from(["cpu", "cuda", "cuda:3", "auto"])),
            dtype=draw(st.sampled_from(ComputeDtype)),
            eval_every=None if evaluation is None else draw(st.none() | positive),
            update=draw(st.sampled_from(Update)),
            durability=draw(st.sampled_from(Durability)),
            checkpoint_every=draw(positive),
            checksums=draw(st.booleans()),
        ),
        memory=MemoryConfig(
            gpu=draw(maybe_size),
            host=draw(maybe_size),
            ssd=draw(maybe_size),
            chunk=Bytes(2**14 * draw(st.integers(min_value=1, max_value=2**20))),
        ),
        storage=BackendChoice(
            kind="storage",
            name="aio",
            settings=DiskConfig(
                directories=tuple(draw(st.lists(paths, max_size=3))),
                engine=draw(st.sampled_from(Engine)),
                limit=draw(maybe_size),
                label=draw(st.text(max_size=8)),
                weights=draw(st.dictionaries(st.text(max_size=4), floats, max_size=3)),
                tags=draw(st.frozensets(st.text(max_size=4), max_size=3)),
                inner=draw(st.none() | st.builds(Inner, depth=positive, where=st.none() | paths)),
            ),
        ),
        optimizer=BackendChoice(
            kind="optimizer",
            name="cpuadam",
            settings=AdamConfig(lr=draw(floats), betas=(draw(floats), draw(floats)), warmup_steps=draw(positive)),
        ),
        planner=BackendChoice(kind="planner", name="greedy", settings=Empty()),
        profiler=BackendChoice(kind="profiler", name="file", settings=Demanding(draw(paths), "a")),
    )


@settings(max_examples=40)
@given(configs())
def test_a_dumped_config_reads_back_equal(tmp_path_factory, config):
    file = tmp_path_factory.getbasetemp() / f"dumped-{os.getpid()}.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(file, (), REGISTRY) == config


def test_a_dump_says_every_key_and_sizes_readably(file):
    config = load(file, MINIMAL, "memory.gpu=24GiB")
    dumped = dump_config(evolve(config, storage=BackendChoice(kind="storage", name="memory", settings=Empty())))
    assert "  gpu: 24GiB\n  host: null\n  ssd: null\n  chunk: 64MiB\n" in dumped
    assert "storage:\n  backend: memory\noptimizer:\n  backend: cpuadam\n  lr: 1.0e-05\n" in dumped
