"""What all conformance suites share: a backend may declare where it deviates, by test and with a reason."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import pytest

from lohan_core.backend import Backend

__all__ = ["ConformanceSuite", "default_config"]


def default_config(backend: Backend[Any]) -> Any:
    """Return what a backend is opened with where a section says nothing; fail the test if it must say something."""
    required = [field.alias for field in attrs.fields(backend.config) if field.init and field.default is attrs.NOTHING]
    if required:
        keys = ", ".join(required)
        pytest.fail(f"{backend.config.__name__} has no default for {keys}: give your test class a config of its own")
    return backend.config()


class ConformanceSuite:
    """Base of the suites. A plugin's test file subclasses a suite and says which backend it is about.

    ``deviations`` maps the name of a test to the reason why this backend does not pass it; such tests are skipped with
    that reason, so that every exception is visible in the report. A name that is no test of the suite is itself a
    failure: an exception must not outlive what it excepts.
    """

    deviations: ClassVar[dict[str, str]] = {}

    @pytest.fixture(autouse=True)
    def _skip_declared_deviation(self, request: pytest.FixtureRequest) -> None:
        name = getattr(request.function, "__name__", "")
        if name in self.deviations:
            pytest.skip(f"declared deviation: {self.deviations[name]}")

    def test_deviations_name_tests_of_this_suite(self) -> None:
        """Every declared deviation is about a test that exists, and gives a reason."""
        unknown = [name for name in self.deviations if not (name.startswith("test_") and hasattr(type(self), name))]
        assert not unknown, f"deviations of tests that {type(self).__name__} does not have: {', '.join(unknown)}"
        unexplained = [name for name, reason in self.deviations.items() if not reason.strip()]
        assert not unexplained, f"deviations without a reason: {', '.join(unexplained)}"
