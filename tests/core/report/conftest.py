from __future__ import annotations

import pytest
from browser import find_browser


@pytest.fixture
def browser(tmp_path):
    """A real browser; tests that ask for one are skipped where there is none."""
    return find_browser(tmp_path / "browser")
