"""``lohan plugins``: every backend, where it comes from, and whether it works on this machine."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from lohan_core.registry import Registry, load_registry

__all__ = ["plugins"]


def plugins(*, as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """List every backend with kind, distribution and version, and whether it is usable here."""
    registry = load_registry()
    print(json.dumps(listing(registry), indent=1) if as_json else render(listing(registry)))


def listing(registry: Registry) -> dict[str, list[dict[str, Any]]]:
    """Return ``{"backends": [...], "broken": [...]}``, plain data; asks every backend's probe."""
    backends = []
    for offer in registry.offers:
        reason = offer.unusable()
        backends.append(
            {
                "kind": offer.kind.value,
                "name": offer.backend.name,
                "summary": offer.backend.summary,
                "plugin": offer.provider.plugin,
                "distribution": offer.provider.distribution,
                "version": offer.provider.version,
                "usable": reason is None,
                "reason": reason,
            }
        )
    broken = [
        {
            "plugin": plugin.provider.plugin,
            "distribution": plugin.provider.distribution,
            "version": plugin.provider.version,
            "reason": plugin.reason,
        }
        for plugin in registry.broken
    ]
    return {"backends": backends, "broken": broken}


def render(listed: dict[str, list[dict[str, Any]]]) -> str:
    """Write a listing as text: one line per backend, and a further one where it is not usable."""
    rows = [(b["kind"], b["name"], f"{b['distribution']} {b['version']}", b["summary"]) for b in listed["backends"]]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = []
    for backend, row in zip(listed["backends"], rows, strict=True):
        cells = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        lines.append(f"{cells}  {row[-1]}")
        if not backend["usable"]:
            lines.append(f"    not usable here: {backend['reason']}")
    for plugin in listed["broken"]:
        origin = f"{plugin['distribution']} {plugin['version']}"
        lines.append(f"broken plugin {plugin['plugin']!r} of {origin}: {plugin['reason']}")
    return "\n".join(lines)
