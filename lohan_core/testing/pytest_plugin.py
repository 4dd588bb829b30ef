"""Loaded by pytest through its ``pytest11`` entry point, before any test module.

pytest explains a failed ``assert`` only in modules that it was told about before they are imported; without this, a
stranger's plugin that fails a suite would see a bare ``AssertionError``. It imports nothing else: pytest starts up with
it in every project of an environment in which LoHan is installed.
"""

from __future__ import annotations

from pkgutil import iter_modules

import pytest

import lohan_core.testing

pytest.register_assert_rewrite(
    *(
        module.name
        for module in iter_modules(lohan_core.testing.__path__, "lohan_core.testing.")
        if module.name != __name__
    )
)
