"""What a browser would find on a report's page, without one."""

from __future__ import annotations

import re
from html.parser import HTMLParser


def outline(path):
    """The page without the content of its figures."""
    return re.sub(r"(data:[a-z/+]+;base64,)[^\"]+", r"\1", path.read_text(encoding="utf-8"))


class Page(HTMLParser):
    """What a browser would find: tags with attributes, text, and the text of each table row."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, path):
        super().__init__()
        self.tags, self.rows, self.open = [], [], []
        self.text = ""
        self.feed(outline(path))
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th", "dt", "h2"):
            self.handle_data(" ")

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data
            if "tr" in self.open:
                self.rows[-1] += data

    def trimmed_rows(self):
        return [" ".join(row.split()) for row in self.rows]

    def references(self):
        return [value for _, attrs in self.tags for key, value in attrs.items() if key in ("src", "href", "srcset")]

    def words(self):
        return " ".join(self.text.split())
