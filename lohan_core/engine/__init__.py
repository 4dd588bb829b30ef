"""Carrying a schedule out: lanes, buffers, and what each kind of task does."""
