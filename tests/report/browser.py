"""A page as a browser reads it: headless Chromium where it is installed, else not at all."""

import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
VOID = {"meta", "link", "input", "br", "img", "hr"}
needs_browser = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}")


def dumped(file, size="1200,900"):
    """The document that Chromium has made of a file, its scripts run."""
    with tempfile.TemporaryDirectory() as profile:
        command = [str(CHROMIUM), *QUIET, f"--user-data-dir={profile}", f"--window-size={size}",
                   "--dump-dom", file.as_uri()]  # fmt: skip
        done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    return done.stdout.decode()


class Document(HTMLParser):
    """`tags` counts elements, `attributes` holds all names, `texts` the text of each element of a
    class or a name that was asked for, in order."""

    def __init__(self, html, wanted=()):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.values = {}, set(), []
        self.texts = {name: [] for name in wanted}
        self._open = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.attributes |= {name for name, _ in attrs}
        self.values += [value for _, value in attrs if value]
        if tag not in VOID:
            names = {tag, *(dict(attrs).get("class") or "").split()} & set(self.texts)
            for name in names:
                self.texts[name].append("")
            self._open.append((tag, names))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if any(tag == own for own, _ in self._open):
            while self._open.pop()[0] != tag:
                pass

    def handle_data(self, data):
        for _, names in self._open:
            for name in names:
                self.texts[name][-1] += data
