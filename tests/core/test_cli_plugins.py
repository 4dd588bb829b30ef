from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from lohan_core import cli
from lohan_core.cli.app import app
from lohan_core.errors import ConfigError, StorageError
from lohan_core.registry import core_version


def run_main(monkeypatch, *arguments):
    """Run the command line in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["lohan", *arguments])
    with pytest.raises(SystemExit) as raised:
        cli.main()
    return raised.value.code


def add_distribution(site, name, module, source):
    """Install, by hand, a distribution that has one plugin module."""
    (site / f"{module}.py").write_text(source)
    info = site / f"{name.replace('-', '_')}-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text(f"[lohan]\n{module} = {module}\n")


GOOD = """\
from pathlib import Path
from attrs import frozen
from lohan_core.backend import Backend
from lohan_core.hookspecs import hookimpl
@frozen
class Reels:
    '''Where tapes are.

    Attributes:
        drives: The tape drives.
    '''
    drives: list[Path]
    speeds: dict[str, float] = {}
@hookimpl
def lohan_storage():
    yield Backend(name='tape', summary='slow', config=Reels, open=Reels, probe=lambda: 'no tape; insert one')
"""


@pytest.fixture
def with_strangers(tmp_path):
    add_distribution(tmp_path, "good-stranger", "good_stranger", GOOD)
    add_distribution(tmp_path, "bad-stranger", "bad_stranger", "import no_such_module_anywhere\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}


def listed(environment, *options):
    done = subprocess.run(
        [sys.executable, "-P", "-m", "lohan_core.cli", "plugins", *options],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


def test_plugins_lists_good_and_broken_as_json(with_strangers):
    found = json.loads(listed(with_strangers, "--json"))
    assert found["broken"] == [
        {
            "plugin": "bad_stranger",
            "distribution": "bad-stranger",
            "version": "0.3",
            "reason": "ModuleNotFoundError: No module named 'no_such_module_anywhere'",
        }
    ]
    by_name = {(b["kind"], b["name"]): b for b in found["backends"]}
    assert by_name["storage", "tape"] == {
        "kind": "storage",
        "name": "tape",
        "summary": "slow",
        "plugin": "good_stranger",
        "distribution": "good-stranger",
        "version": "0.3",
        "usable": False,
        "reason": "no tape; insert one",
    }
    memory = by_name["storage", "memory"]
    assert (memory["distribution"], memory["version"], memory["usable"]) == ("lohan", core_version(), True)


def test_every_shipped_backend_is_listed(with_strangers):
    found = json.loads(listed(with_strangers, "--json"))
    assert {(b["kind"], b["name"]) for b in found["backends"] if b["distribution"] == "lohan"} >= {
        ("storage", "aio"),
        ("storage", "memory"),
        ("optimizer", "cpuadam"),
        ("optimizer", "torch_adamw"),
        ("planner", "keep_nothing"),
        ("planner", "keep_all"),
        ("profiler", "measured"),
        ("profiler", "file"),
    }


def test_plugins_lists_good_and_broken_as_text(with_strangers):
    lines = listed(with_strangers).splitlines()
    place = next(number for number, line in enumerate(lines) if line.split()[:2] == ["storage", "tape"])
    assert lines[place].split() == ["storage", "tape", "good-stranger", "0.3", "slow"]
    assert lines[place + 1] == "    not usable here: no tape; insert one"
    assert lines[-1] == (
        "broken plugin 'bad_stranger' of bad-stranger 0.3: "
        "ModuleNotFoundError: No module named 'no_such_module_anywhere'"
    )


def test_the_keys_of_one_plugin_are_listed_whoever_made_it(with_strangers):
    text = listed(with_strangers, "tape")
    for line in (
        "  drives (list of paths; required)\n      The tape drives.",
        "  speeds (keys with numbers; by default {})",
    ):
        assert line in text
    (backend,) = json.loads(listed(with_strangers, "tape", "--json"))["backends"]
    assert backend["keys"][0] == {
        "name": "drives",
        "type": "list of paths",
        "default": "required",
        "meaning": "The tape drives.",
    }


def test_a_plugin_that_is_not_there_is_answered_with_the_nearest(monkeypatch, capsys):
    assert run_main(monkeypatch, "plugins", "aoi") == 2
    assert "no backend is called 'aoi'. Did you mean 'aio'?" in capsys.readouterr().err


def test_the_command_line_starts_without_heavy_imports():
    script = (
        "import sys\n"
        "import lohan_core.cli\n"
        "heavy = {'torch', 'transformers', 'numpy', 'tokenizers', 'cattrs', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-P", "-c", script], check=True)


def test_version(monkeypatch, capsys):
    assert run_main(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"lohan {core_version()}\n"


@pytest.mark.parametrize("arguments", [["plugin"], ["plugins", "--jsn"], ["train"], ["bench", "adam", "--rounds", "x"]])
def test_wrong_usage_exits_with_2(monkeypatch, capsys, arguments):
    assert run_main(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert "Error: " in captured.err
    assert captured.out == ""


def failing(monkeypatch, error):
    def command():
        raise error

    monkeypatch.setattr(cli, "app", command)


def test_a_mistake_is_one_line_each_without_traceback(monkeypatch, capsys):
    failing(monkeypatch, ConfigError("a.yaml:1: one\na.yaml:2: two"))
    assert run_main(monkeypatch) == 2
    assert capsys.readouterr().err == "error: a.yaml:1: one\nerror: a.yaml:2: two\n"


def test_a_failing_drive_has_its_own_exit_code(monkeypatch, capsys):
    failing(monkeypatch, StorageError(5, "/nvme0/x: Input/output error at byte 4096", "/nvme0/x", 4096))
    assert run_main(monkeypatch) == 1
    assert capsys.readouterr().err == "error: /nvme0/x: Input/output error at byte 4096\n"


def test_a_bug_keeps_its_traceback(monkeypatch):
    failing(monkeypatch, ZeroDivisionError())
    monkeypatch.setattr(sys, "argv", ["lohan"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_an_interrupt_exits_with_130(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("lohan_core.cli.plugins.load_registry", interrupted)
    assert run_main(monkeypatch, "plugins") == 130


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["bench", "storage", "--size", "1Gib", "--depth", "0"], "error: lohan bench: depth: must be >= 1: 0\n"),
        (["bench", "storage", "--depth", "5000"], "error: --depth must be <= 1024: 5000\n"),
        (
            ["bench", "storage", "--block", "5000", "--size", "10000"],
            "error: --block must be a multiple of 4096 bytes, at most 1 GiB: 5000\n",
        ),
        (["bench", "adam", "--rounds", "0"], "error: lohan bench: rounds: must be >= 1: 0\n"),
        (["train", "absent.yaml"], "error: absent.yaml: cannot read the config file: No such file or directory\n"),
        (["preview", "absent.yaml"], "error: absent.yaml: cannot read the config file: No such file or directory\n"),
    ],
)
def test_impossible_arguments_are_one_line(monkeypatch, capsys, tmp_path, arguments, line):
    monkeypatch.chdir(tmp_path)
    assert run_main(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err == line


def test_every_command_says_what_it_does(monkeypatch, capsys):
    assert run_main(monkeypatch, "--help") == 0
    overview = capsys.readouterr().out
    for command in app.registered_commands:
        assert run_main(monkeypatch, command.name, "--help") == 0
        text = capsys.readouterr().out
        assert command.name in overview
        assert len(text.split("Options:")[0].strip().splitlines()) > 2, f"{command.name} has no help"
