from __future__ import annotations

import pytest
from attrs import evolve

from lohan_core.errors import ConfigError
from lohan_core.hardware import find_hardware, load_hardware, shipped_names, with_overrides
from lohan_core.hardware.machine import make_machine, update_bytes
from lohan_core.states import StateVector
from lohan_core.units import Bytes

ADAM = tuple(StateVector(name=name, value_bytes=4) for name in ("master", "exp_avg", "exp_avg_sq"))

COMPLETE = """\
name: example
source: nobody
gpu:
  flops_per_second: 1e14
  memory_bandwidth: 1TB
  memory: 24GiB
  h2d: 20GB
  d2h: 22GB
host:
  memory: 64GiB
  memory_bandwidth: 56GB
drives:
  count: 2
  read: 6GB
  write: 2GB
  capacity: 1TB
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "machine.yaml"
        path.write_text(text)
        return path

    return write


def test_the_shipped_machines_are_those_of_the_documentation():
    assert shipped_names() == (
        "gaming-pc-1-drive",
        "gaming-pc-2-drives",
        "h200",
        "no-gpu",
        "rtx-3090",
        "rtx-4080",
        "rtx-4090",
    )


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_machine_is_plausible_and_tells_its_source(name):
    hardware = find_hardware(name)
    assert len(hardware.source) > 40
    machine = make_machine(hardware, ADAM, 2)
    assert make_machine(hardware, ADAM, 4).gpu_flops_per_second <= machine.gpu_flops_per_second, "in fp32"
    assert 1e12 < machine.gpu_flops_per_second < 1e15
    assert 1e9 < machine.ssd_write_bytes_per_second <= machine.ssd_read_bytes_per_second < 1e11
    assert 1e10 < machine.h2d_bytes_per_second < 1e11
    assert 1e9 < machine.cpu_parameters_per_second < 1e10
    assert 2**33 < machine.gpu_bytes < 2**38
    assert 2**35 < machine.host_bytes < 2**42
    assert hardware.drives.endurance > 100 * hardware.drives.capacity


def test_published_figures_become_lanes(write):
    machine = make_machine(load_hardware(write(COMPLETE)), ADAM, 2)
    assert (machine.name, machine.gpu_flops_per_second) == ("example", 1e14)
    assert (machine.h2d_bytes_per_second, machine.d2h_bytes_per_second) == (20e9, 22e9)
    assert (machine.ssd_read_bytes_per_second, machine.ssd_write_bytes_per_second) == (12e9, 4e9)
    assert machine.ssd_mixed_bytes_per_second == 8e9, "by turns: half of the time each"
    assert machine.cpu_parameters_per_second == 56e9 / 28
    assert machine.memory_bytes_per_second == 56e9, "which updates share with copies"
    assert machine.gpu_bytes == 23 * 2**30
    assert machine.host_bytes == 60 * 2**30
    assert machine.ssd_bytes == 2 * 10**12


def test_an_array_is_no_faster_than_what_its_drives_share(write):
    hardware = load_hardware(write(COMPLETE + "  array_limit: 10GB\n"))
    machine = make_machine(hardware, ADAM, 2)
    assert (machine.ssd_read_bytes_per_second, machine.ssd_write_bytes_per_second) == (10e9, 4e9)
    assert machine.ssd_mixed_bytes_per_second == 8e9, "each drive by turns, as without a limit"
    duplex = evolve(hardware, drives=evolve(hardware.drives, simplex=False))
    assert make_machine(duplex, ADAM, 2).ssd_mixed_bytes_per_second == 10e9


def test_an_update_moves_its_states_both_ways():
    assert update_bytes(ADAM, 2) == 28
    eight_bit = (
        ADAM[0],
        StateVector(name="m", value_bytes=1),
        StateVector(name="scale", value_bytes=4, elements_per_value=256),
    )
    assert update_bytes(eight_bit, 4) == 2 * (4 + 1 + 4 / 256) + 8


def test_without_a_gpu_a_copy_is_one_within_main_memory(write):
    gpu = COMPLETE.index("gpu:"), COMPLETE.index("host:")
    text = COMPLETE[: gpu[0]] + COMPLETE[gpu[1] :]
    machine = make_machine(load_hardware(write(text.replace("host:\n", "host:\n  flops_per_second: 1e12\n"))), ADAM, 4)
    assert machine.gpu_flops_per_second == 1e12
    assert machine.h2d_bytes_per_second == machine.d2h_bytes_per_second == 28e9
    assert machine.gpu_bytes == machine.host_bytes == 60 * 2**30
    assert machine.memory_bytes_per_second is None, "what copies take from updates, they take from the processor"
    with pytest.raises(ConfigError, match=r"example: its rate in fp32 is not known; give gpu\.fp32_flops_per_second"):
        make_machine(load_hardware(write(COMPLETE)), ADAM, 4)
    with pytest.raises(ConfigError, match="host: must have flops_per_second where there is no gpu"):
        load_hardware(write(text))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  read: 6GB\n", "", r"machine\.yaml:12: drives\.read: is missing"),
        ("read: 6GB", "read: 6G", r"machine\.yaml:14: drives\.read: got '6G': write GiB .* or GB"),
        ("read: 6GB", "reads: 6GB", r"machine\.yaml:14: drives\.reads: unknown key\. Did you mean 'read'"),
        ("count: 2", "count: 0", r"drives\.count: must be >= 1"),
        ("memory: 24GiB", "memory: 1GiB", r"machine\.yaml:6: gpu\.memory: must be more than what is reserved of it"),
        ("memory: 64GiB", "memory: 4GiB", r"host\.memory: must be more than what is reserved of it"),
        (
            "read: 6GB",
            "read: 6000",
            r"machine\.yaml:14: drives\.read: must be 1000000 B/s at least, got 6000: give",
        ),
        ("name: example", "name: ''", r"machine\.yaml:1: name: must not be empty"),
    ],
)
def test_a_mistake_is_told_with_file_line_and_key(write, old, new, message):
    with pytest.raises(ConfigError, match=message):
        load_hardware(write(COMPLETE.replace(old, new)))


def test_a_machine_is_found_by_name_or_by_path(write):
    assert find_hardware("rtx-4090").gpu.memory == 24 * 2**30
    assert find_hardware(str(write(COMPLETE))).name == "example"
    with pytest.raises(ConfigError, match=r"no machine is called 'rtx-490'\. Did you mean 'rtx-4090'"):
        find_hardware("rtx-490")
    with pytest.raises(ConfigError, match=r"rtx-490\.yaml: cannot read"):
        find_hardware("rtx-490.yaml")


def test_drives_and_memory_can_be_others():
    hardware = find_hardware("rtx-4090")
    changed = with_overrides(hardware, drives=3, host=Bytes(128 * 2**30))
    assert (changed.drives.count, changed.host.memory) == (3, 128 * 2**30)
    assert changed.name == "RTX 4090, 12 drives (here with 3 drives and 128 GiB of main memory)"
    assert evolve(changed, name=hardware.name, drives=hardware.drives, host=hardware.host) == hardware
    assert with_overrides(hardware) == hardware
    with pytest.raises(ConfigError, match=r"^drives: 'count' must be >= 1"):
        with_overrides(hardware, drives=0)
    with pytest.raises(ConfigError, match=r"^host: 'memory' must be more than what is reserved of it \(4\.00 GiB\)"):
        with_overrides(hardware, host=Bytes(2**30))
