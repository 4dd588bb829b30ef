"""``lohan plugins``: every backend, where it comes from, and whether it works on this machine."""

from __future__ import annotations

import json
import textwrap
from typing import Annotated, Any

import typer
from attrs import asdict

from lohan_core.registry import Offer, Registry, load_registry

__all__ = ["plugins"]


def plugins(
    name: Annotated[str | None, typer.Argument(help="A backend: list the keys of its section, too.")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List every backend with kind, distribution and version, and whether it is usable here."""
    registry = load_registry()
    listed = listing(registry) if name is None else described(registry, name)
    if as_json:
        print(json.dumps(listed, indent=1))
        return
    print(render(listed))
    for backend in listed["backends"]:
        for key in backend.get("keys", ()):
            print(_section_key(**key))


def described(registry: Registry, name: str) -> dict[str, list[dict[str, Any]]]:
    """Return a listing of the backends of one name, whatever their kind, with the keys of their sections.

    Raises:
        BackendError: there is none.
    """
    from lohan_core.config.reference import keys

    backends = [
        _offered(offer) | {"keys": [asdict(key) for key in keys(offer.backend.config)]}
        for offer in registry.named(name)
    ]
    return {"backends": backends, "broken": []}


def _section_key(name: str, type: str, default: str, meaning: str) -> str:  # noqa: A002 - the columns of the reference
    default = default if default == "required" else f"by default {default}"
    text = [
        f"{name} ({type}; {default})",
        *textwrap.wrap(meaning, 110, initial_indent=" " * 4, subsequent_indent=" " * 4),
    ]
    return textwrap.indent("\n".join(text).replace("`", ""), "  ")


def listing(registry: Registry) -> dict[str, list[dict[str, Any]]]:
    """Return ``{"backends": [...], "broken": [...]}``, plain data; asks every backend's probe."""
    broken = [
        {
            "plugin": plugin.provider.plugin,
            "distribution": plugin.provider.distribution,
            "version": plugin.provider.version,
            "reason": plugin.reason,
        }
        for plugin in registry.broken
    ]
    return {"backends": [_offered(offer) for offer in registry.offers], "broken": broken}


def _offered(offer: Offer) -> dict[str, Any]:
    reason = offer.unusable()
    return {
        "kind": offer.kind.value,
        "name": offer.backend.name,
        "summary": offer.backend.summary,
        "plugin": offer.provider.plugin,
        "distribution": offer.provider.distribution,
        "version": offer.provider.version,
        "usable": reason is None,
        "reason": reason,
    }


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
