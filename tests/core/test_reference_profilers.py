from __future__ import annotations

import re

import pytest
from attrs import evolve, frozen

from lohan_core.backend import Backend
from lohan_core.errors import ConfigError
from lohan_core.interfaces.profiler import Profiler
from lohan_core.profile import Profile
from lohan_core.reference.profilers import FILE, MEASURED, FileProfilerConfig, MeasuredProfilerConfig
from lohan_core.testing.profiler import ProfilerSuite, example_subject

QUICK = MeasuredProfilerConfig(seconds=0.002)


class TestMeasured(ProfilerSuite):
    backend = MEASURED

    @pytest.fixture
    def config(self):
        return QUICK


class TestFile(ProfilerSuite):
    backend = FILE

    @pytest.fixture
    def config(self, tmp_path, subject):
        path = tmp_path / "profile.json"
        path.write_text(MEASURED.open(QUICK).profile(subject).to_json())
        return FileProfilerConfig(path=path)

    def test_a_missing_file_is_named(self, tmp_path, subject):
        with pytest.raises(ConfigError, match=r"profiler\.path: .*absent\.json: No such file"):
            FILE.open(FileProfilerConfig(path=tmp_path / "absent.json")).profile(subject)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"[]", r"profile\.json: not a profile, which is one JSON object"),
            (b"\xff\xfe", r"profiler\.path: .*profile\.json: not UTF-8 text"),
        ],
    )
    def test_a_file_that_is_no_profile_is_refused(self, config, subject, content, message):
        config.path.write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            FILE.open(config).profile(subject)

    def test_values_that_cannot_be_are_one_line_with_the_reason(self, config, subject):
        text = re.sub(r'"seconds": [^,\n]*', '"seconds": NaN', config.path.read_text())
        config.path.write_text(text)
        with pytest.raises(ConfigError, match=r"'seconds' must be >= 0: nan @ \$\.blocks\[.*\] \(and \d+ more\)$"):
            FILE.open(config).profile(subject)

    def test_a_profile_of_another_model_is_refused(self, config, subject):
        profile = Profile.from_json(config.path.read_text())
        config.path.write_text(evolve(profile, blocks=profile.blocks[1:]).to_json())
        with pytest.raises(ConfigError, match="another model"):
            FILE.open(config).profile(subject)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"weight_bytes": 2}, "another run.dtype: bytes per weight: 2 there, 4 here"),
            ({"states": ()}, r"another optimizer.backend: states:  there, master \(4 bytes for 1\), exp_avg"),
            ({"micro_batch_size": 7}, "another run.micro_batch_size: rows: 7 there, 2 here; .*run.micro_batch_size=2$"),
            ({"sequence_length": 16}, "another data.sequence_length: tokens: 16 there, 32 here"),
        ],
    )
    def test_a_profile_of_another_step_is_refused(self, config, subject, changes, message):
        config.path.write_text(evolve(Profile.from_json(config.path.read_text()), **changes).to_json())
        with pytest.raises(ConfigError, match=message):
            FILE.open(config).profile(subject)


@frozen
class Nothing:
    pass


def in_gigabytes(profile):
    machine = profile.machine
    return evolve(profile, machine=evolve(machine, ssd_read_bytes_per_second=machine.ssd_read_bytes_per_second / 1e9))


def multiply_adds(profile):
    return evolve(profile, blocks=tuple(evolve(b, flops=b.flops / 2) for b in profile.blocks))


def elements_for_bytes(profile):
    return evolve(profile, blocks=tuple(evolve(b, input_bytes=b.input_bytes // 4) for b in profile.blocks))


def milliseconds(profile):
    return evolve(profile, blocks=tuple(evolve(b, seconds=b.seconds * 1e9) for b in profile.blocks))


def without_head(profile):
    return evolve(profile, blocks=profile.blocks[:-1])


def doubled_candidates(profile):
    return evolve(profile, blocks=tuple(evolve(b, candidates=b.candidates * 2) for b in profile.blocks))


def infinitely_fast(profile):
    return evolve(profile, machine=evolve(profile.machine, gpu_flops_per_second=float("inf")))


@pytest.mark.parametrize(
    ("spoil", "test"),
    [
        (in_gigabytes, "test_machine_is_in_the_units_of_its_fields"),
        (infinitely_fast, "test_machine_is_in_the_units_of_its_fields"),
        (infinitely_fast, "test_survives_json"),
        (multiply_adds, "test_blocks_are_in_the_units_of_their_fields"),
        (elements_for_bytes, "test_blocks_are_in_the_units_of_their_fields"),
        (milliseconds, "test_blocks_are_in_the_units_of_their_fields"),
        (without_head, "test_is_of_the_model_at_hand"),
        (doubled_candidates, "test_candidates_are_parts_of_their_block"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_suite_finds_planted_faults(spoil, test):
    class Spoilt(Profiler):
        def profile(self, subject):
            return spoil(MEASURED.open(QUICK).profile(subject))

    class Suite(ProfilerSuite):
        backend = Backend(name="spoilt", summary="", config=Nothing, open=lambda _: Spoilt())

    suite = Suite()
    subject = example_subject()
    arguments = {"profile": suite.backend.open(Nothing()).profile(subject), "subject": subject}
    method = getattr(suite, test)
    wanted = method.__code__.co_varnames[1 : method.__code__.co_argcount]
    with pytest.raises(AssertionError):
        method(**{name: arguments[name] for name in wanted})
