"""Pages and traces: what was predicted and what was measured, to be looked at."""

from lohan_core.report.page import comparison_page, plan_page, record_page, write_page
from lohan_core.report.perfetto import to_perfetto

__all__ = ["comparison_page", "plan_page", "record_page", "to_perfetto", "write_page"]
