"""A real browser without a window: what a page comes to when its scripts have run."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from attrs import define, field, frozen

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--window-size=1500,1400",
)
VOID = {"meta", "br", "hr", "img", "input", "link"}
PATIENCE_SECONDS = 120


@define
class Element:
    """An element of the page, with what lies in it."""

    tag: str
    attributes: dict[str, str]
    children: list[Element] = field(factory=list)
    text: str = ""

    def all(self, selector: str) -> list[Element]:
        """Find elements below this one by ``tag``, ``#id``, ``.class`` or ``tag.class``."""
        tag, mark, name = re.fullmatch(r"(\w*)([#.]?)([\w-]*)", selector).groups()
        found = []
        for child in self.children:
            names = child.attributes.get("class", "").split() if mark == "." else [child.attributes.get("id")]
            if (not tag or child.tag == tag) and (not mark or name in names):
                found.append(child)
            found += child.all(selector)
        return found

    def one(self, selector: str) -> Element:
        """Find the only such element."""
        (found,) = self.all(selector)
        return found

    @property
    def words(self) -> str:
        """All text in it, blanks run together."""
        return " ".join(" ".join([self.text, *(child.words for child in self.children)]).split())


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("", {})]

    def handle_starttag(self, tag, attrs):
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag, f"unexpected </{tag}>"

    def handle_data(self, data):
        self.open[-1].text += data


@frozen
class Browser:
    """A browser's executable, and a folder for what it writes."""

    executable: str
    folder: Path

    def look(self, page: Path, fragment: str = "") -> Element:
        """Open a page, let its scripts run, and return what is then there. A script that fails is a failure."""
        ended = self._run("--dump-dom", f"{page.absolute().as_uri()}#{fragment}")
        messages = [line for line in ended.stderr.splitlines() if "CONSOLE" in line]
        assert not messages, messages
        reader = _Reader()
        reader.feed(ended.stdout)
        (root,) = [child for child in reader.open[0].children if child.tag == "html"]
        return root

    def photograph(self, page: Path, picture: Path) -> None:
        """Write what is seen of a page as a PNG file."""
        self._run(f"--screenshot={picture}", page.absolute().as_uri())

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.executable, *OPTIONS, f"--user-data-dir={self.folder}", *arguments],
            check=True,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )


def find_browser(folder: Path) -> Browser:
    """Find a browser, or skip."""
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip(f"no browser to look at pages with: none of {', '.join(NAMES)} is installed")
    return Browser(executable, folder)
