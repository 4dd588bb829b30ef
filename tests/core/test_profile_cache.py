from __future__ import annotations

import pytest
import torch
from attrs import evolve

from lohan_core.engine import profile_cache
from lohan_core.engine.profile_cache import ProfileCache
from lohan_core.model.choices import Loss
from lohan_core.model.cut import cut_model
from lohan_core.model.skeleton import build_skeleton
from lohan_core.reference.profilers import MEASURED, MeasuredProfilerConfig
from lohan_core.testing.profiler import example_subject

QUICK = MeasuredProfilerConfig(seconds=0.001)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return ProfileCache(tmp_path / "lohan" / "profiles")


def measured(subject, config=QUICK):
    return MEASURED.open(config).profile(subject)


def rates(profile):
    machine = profile.machine
    return evolve(machine, gpu_bytes=0, host_bytes=0, ssd_bytes=0), profile.blocks


def test_what_was_measured_once_is_used_again_but_for_what_is_free(cache, monkeypatch):
    subject = example_subject()
    first = measured(subject)
    (kept,) = cache.directory.iterdir()
    assert kept.name == f"{cache.key(subject, seconds=QUICK.seconds)}.json"
    monkeypatch.setattr("lohan_core.engine.measure.free_device_bytes", lambda _: 12345)
    again = measured(subject)
    assert rates(again) == rates(first)
    assert again.machine.gpu_bytes == 12345


def test_without_the_cache_nothing_is_kept_and_nothing_used(cache):
    subject = example_subject()
    measured(subject, evolve(QUICK, cache=False))
    assert not cache.directory.exists()
    first = measured(subject)
    assert rates(measured(subject, evolve(QUICK, cache=False))) != rates(first)


def test_another_batch_time_model_loss_attention_or_version_is_another_profile(cache, monkeypatch):
    subject = example_subject()
    longer = evolve(
        subject.batch,
        micro_batches=tuple(
            {name: tensor.repeat(1, 2) for name, tensor in inputs.items()} for inputs in subject.batch.micro_batches
        ),
    )
    keys = {cache.key(subject, seconds=0.001), cache.key(subject, seconds=0.002)}
    keys.add(cache.key(evolve(subject, batch=longer), seconds=0.001))
    monkeypatch.setattr(subject.model.model.config, "rms_norm_eps", 0.5)
    keys.add(cache.key(subject, seconds=0.001))
    monkeypatch.setattr(profile_cache, "VERSION", profile_cache.VERSION + 1)
    keys.add(cache.key(subject, seconds=0.001))
    keys.add(cache.key(evolve(subject, model=evolve(subject.model, loss=Loss.CHUNKED)), seconds=0.001))
    subject.model.model.set_attn_implementation("eager")
    keys.add(cache.key(subject, seconds=0.001))
    assert len(keys) == 7


@pytest.mark.parametrize("package", ["transformers", "flash-attn", "liger-kernel"])
def test_another_version_of_what_computes_is_another_profile(cache, monkeypatch, package):
    subject = example_subject()
    before = cache.key(subject, seconds=0.001)
    known = profile_cache.version
    monkeypatch.setattr(profile_cache, "version", lambda name: "99.0" if name == package else known(name))
    assert cache.key(subject, seconds=0.001) != before


@pytest.mark.parametrize(("dtype", "profiles"), [(torch.float32, 1), (torch.bfloat16, 2)])
def test_micro_batches_matter_only_where_gradients_of_several_are_summed_apart(cache, dtype, profiles):
    subject = example_subject()
    subject = evolve(subject, model=cut_model(build_skeleton(subject.model.model.config, dtype)))
    (inputs,) = subject.batch.micro_batches
    batches = [evolve(subject.batch, micro_batches=(inputs,) * number) for number in (1, 2, 6)]
    assert len({cache.key(evolve(subject, batch=batch), seconds=0.001) for batch in batches}) == profiles


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"\xff\xfe", b"not json"])
def test_a_damaged_file_is_measured_anew_and_replaced(cache, damage):
    subject = example_subject()
    first = measured(subject)
    (kept,) = cache.directory.iterdir()
    kept.write_bytes(damage)
    again = measured(subject)
    assert rates(again) != rates(first)
    assert rates(measured(subject)) == rates(again)


def test_a_cache_that_cannot_be_written_is_logged_and_no_failure(cache, caplog):
    cache.directory.parent.mkdir(parents=True)
    cache.directory.write_text("in the way")
    assert measured(example_subject()).blocks
    assert "the profile is not kept" in caplog.text
