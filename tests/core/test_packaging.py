"""What is installed is what is in the tree, dependencies go one way, and set-up does what it says."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import lohan_core
from lohan_core.registry import core_version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PLUGINS = sorted(path for path in (ROOT / "plugins").glob("*/lohan_*") if (path / "__init__.py").exists())
PACKAGES = [ROOT / "lohan_core", *PLUGINS]
NATIVE = ["lohan_storage_aio/_native", "lohan_optim_cpuadam/_native"]


def installed_files():
    """The files of the installed wheel; None where the tests run on the checkout."""
    try:
        files = distribution("lohan").files
    except PackageNotFoundError:
        return None
    return [str(file) for file in files] if files else None


needs_wheel = pytest.mark.skipif(installed_files() is None, reason="LoHan runs from its checkout, not from a wheel")


@needs_wheel
def test_the_tests_run_on_the_installed_wheel():
    assert Path(lohan_core.__file__) == Path(distribution("lohan").locate_file("lohan_core/__init__.py"))


@needs_wheel
def test_the_wheel_holds_every_module_with_its_data_and_the_native_ones():
    installed = set(installed_files())
    for package in PACKAGES:
        for suffix in ("*.py", "py.typed", "*.yaml", "*.html", "*.css", "*.js"):
            for path in package.rglob(suffix):
                assert str(path.relative_to(package.parent)) in installed
    for native in NATIVE:
        assert [file for file in installed if file.startswith(f"{native}.") and file.endswith(".so")]


@needs_wheel
def test_the_version_stands_in_one_place():
    assert core_version() == PROJECT["project"]["version"]


def test_every_plugin_is_packaged_typed_and_registered():
    packaged = PROJECT["tool"]["scikit-build"]["wheel"]["packages"]
    entry_points = PROJECT["project"]["entry-points"]["lohan"]
    assert sorted(packaged) == sorted(str(path.relative_to(ROOT)) for path in PACKAGES)
    assert sorted(entry_points.values()) == sorted(f"{path.name}.plugin" for path in PLUGINS)
    assert sorted(f"lohan_{name}" for name in entry_points) == sorted(path.name for path in PLUGINS)
    for package in PACKAGES:
        assert (package / "py.typed").exists()


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_dependencies_go_one_way(package):
    """The core never imports a plugin, and a plugin never another."""
    others = {path.name for path in PLUGINS} - {package.name}
    for path in package.rglob("*.py"):
        assert not others & set(imported(path)), path


def test_what_is_imported_is_declared():
    declared = {Requirement(text).name.replace("-", "_").lower() for text in PROJECT["project"]["dependencies"]}
    optional = {"highspy", "liger_kernel", "matplotlib", "pytest", "tensorboard", "triton"}
    names = {"yaml": "pyyaml", "_cffi_backend": "cffi"}
    own = {path.name for path in PACKAGES}
    for package in PACKAGES:
        for path in package.rglob("*.py"):
            for module in set(imported(path)) - own - set(sys.stdlib_module_names) - optional:
                assert names.get(module, module).lower() in declared, f"{path} imports {module}"


def test_what_is_pinned_is_what_is_accepted():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    project = PROJECT["project"]
    wanted = [*project["dependencies"], *PROJECT["build-system"]["requires"], *project["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pins[requirement.name.lower()]), requirement
    assert pins["torch"] == "2.13.0"
    assert pins["transformers"].startswith("5.")


def test_make_knows_its_targets():
    for target in ("run", "test", "lint", "clean"):
        planned = subprocess.run(
            ["make", "--dry-run", f"PYTHON={sys.executable}", target],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert planned.stdout.strip()


@pytest.fixture
def machine(tmp_path):
    """Give a machine with nothing on PATH but what a test adds: functions to add a tool and run a script, and a log."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "bash").symlink_to(shutil.which("bash"))
    (tools / "env").symlink_to(shutil.which("env"))

    def add(name, script):
        (tools / name).write_text(f"#!{shutil.which('bash')}\n{script}\n")
        (tools / name).chmod(0o755)

    def run(script, *arguments):
        return subprocess.run(
            ["bash", ROOT / "scripts" / script, *arguments],
            env={"PATH": str(tools), "LOG": str(tmp_path / "log")},
            capture_output=True,
            text=True,
            check=False,
        )

    (tmp_path / "log").touch()
    return add, run, tmp_path / "log"


HAS_NO_HEADERS = "exit 1"


def test_set_up_goes_on_without_liburing_where_it_may_not_install(machine):
    add, run, log = machine
    add("c++", HAS_NO_HEADERS)
    add("id", "echo 1000")
    add("sudo", "exit 1")
    add("apt-get", 'echo "$@" >> "$LOG"')
    done = run("system_packages.sh", sys.executable)
    assert done.returncode == 0
    assert "not installable without root: " in done.stderr
    assert "liburing" in done.stderr
    assert log.read_text() == ""


@pytest.mark.parametrize(
    ("tool", "command"),
    [("apt-get", "install -y -qq --no-install-recommends liburing-dev"), ("dnf", "install -y -q liburing-devel")],
)
@pytest.mark.parametrize("user", ["root", "sudoer"])
def test_set_up_installs_liburing_where_it_may(machine, tool, command, user):
    add, run, log = machine
    add("c++", HAS_NO_HEADERS)
    add("id", "echo 0" if user == "root" else "echo 1000")
    add("sudo", 'shift; "$@"')
    add(tool, 'echo "$@" >> "$LOG"')
    done = run("system_packages.sh", sys.executable)
    assert done.returncode == 0
    assert command in log.read_text().splitlines()


@pytest.mark.parametrize(("arguments", "wanted"), [((), False), (("browser",), True)])
def test_a_browser_is_installed_for_the_tests_alone(machine, arguments, wanted):
    add, run, log = machine
    add("c++", "exit 0")
    add("id", "echo 0")
    add("apt-get", 'echo "$@" >> "$LOG"')
    add("complete-python", "exit 0")
    done = run("system_packages.sh", "complete-python", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("install -y -qq --no-install-recommends chromium" in log.read_text().splitlines()) == wanted


def test_set_up_goes_on_when_a_package_cannot_be_had(machine):
    add, run, _ = machine
    add("c++", HAS_NO_HEADERS)
    add("id", "echo 0")
    add("apt-get", "exit 100")
    done = run("system_packages.sh", sys.executable)
    assert done.returncode == 0
    assert "could not install liburing-dev" in done.stderr


def test_set_up_leaves_a_complete_machine_alone(machine):
    add, run, log = machine
    add("c++", "exit 0")
    add("id", "echo 0")
    add("apt-get", 'echo "$@" >> "$LOG"')
    add("complete-python", "exit 0")
    done = run("system_packages.sh", "complete-python")
    assert (done.returncode, done.stderr, log.read_text()) == (0, "", "")


def test_a_python_that_is_too_old_is_passed_over(machine):
    add, run, _ = machine
    add("python3", "exit 1")
    add("python3.12", "exit 0")
    assert run("find_python.sh").stdout == "python3.12\n"


def test_no_python_is_said_with_the_remedy(machine):
    _, run, _ = machine
    done = run("find_python.sh")
    assert done.returncode == 1
    assert "make PYTHON=/path/to/python3" in done.stderr
