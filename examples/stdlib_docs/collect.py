"""Functions and classes of the installed Python standard library that have a docstring, as prompts and completions."""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Example", "collect", "examples_in", "standard_library"]

LEFT_OUT = {"test", "tests", "idle_test", "idlelib", "site-packages", "dist-packages", "lib2to3", "pydoc_data"}
"""Folders with other people's code, or with code that documents nothing."""

ONE_IN = 40
"""One in so many examples is kept for evaluation."""


class Example(NamedTuple):
    """``prompt`` is a definition's first line with the name of its module, ``completion`` its docstring."""

    prompt: str
    completion: str

    @property
    def is_for_evaluation(self) -> bool:
        """Decided by the example alone, so that adding others moves none from one side to the other."""
        digest = hashlib.sha256(f"{self.prompt}{self.completion}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % ONE_IN == 0


def collect(folder: Path) -> list[Example]:
    """All examples below ``folder``, always in the same order, each once."""
    examples: dict[Example, None] = {}
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(folder)
        if LEFT_OUT.isdisjoint(relative.parts):
            module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
            examples.update(dict.fromkeys(examples_in(path.read_bytes(), module)))
    return list(examples)


def examples_in(source: bytes, module: str) -> Iterator[Example]:
    """Examples of one file; of none if it is not valid Python (the library has such files, for its own tests)."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield Example(f"# {module}\n{_header(node)}\n", f'    """{docstring.strip()}"""')


def _header(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {node.name}({bases}):" if bases else f"class {node.name}:"
    keyword = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{keyword} {node.name}({ast.unparse(node.args)}){returns}:"


def standard_library() -> Path:
    """Folder of the standard library that this Python runs with."""
    return Path(sysconfig.get_paths()["stdlib"])
