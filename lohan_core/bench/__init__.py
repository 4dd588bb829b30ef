"""Measurements of backends beside what else does the same work."""
