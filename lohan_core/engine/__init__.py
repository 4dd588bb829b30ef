"""Carrying a schedule out: lanes, buffers, and what each kind of task does."""

from lohan_core.engine.assemble import open_engine
from lohan_core.engine.engine import Engine
from lohan_core.engine.step import StepResult

__all__ = ["Engine", "StepResult", "open_engine"]
