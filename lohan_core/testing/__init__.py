"""Conformance suites for the four kinds of backend: a stranger's plugin runs its own in five lines."""
