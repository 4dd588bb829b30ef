from __future__ import annotations

import platform

import pytest

from lohan_core import processor
from lohan_core.processor import processor_name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            "processor\t: 0\nmodel name\t: A CPU @ 2.60GHz\n\nprocessor\t: 1\nmodel name\t: A CPU @ 2.60GHz\n",
            "A CPU @ 2.60GHz",
        ),
        ("processor\t: 0\nBogoMIPS\t: 50.00\n", platform.machine()),
        (None, platform.machine()),
    ],
)
def test_the_name_is_the_makers_or_else_the_architectures(tmp_path, monkeypatch, text, name):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(processor, "CPU_FACTS", tmp_path / "cpuinfo")
    assert processor_name() == name
