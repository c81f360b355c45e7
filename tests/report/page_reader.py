"""Strict HTML parser for the tests of the page."""

import re
from html.parser import HTMLParser
from pathlib import Path

REQUEST_ATTRIBUTES = ("src", "href", "xlink:href", "srcset", "data", "poster", "action", "background")
"""Attributes that can make a browser send a request."""
VOID_TAGS = {"meta", "link", "img", "br", "input", "hr"}


class PageParser(HTMLParser):
    """Collects links and text, and checks that tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, dict[str, str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in REQUEST_ATTRIBUTES]
        self.attributes.append((tag, {name: value or "" for name, value in attrs}))
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID_TAGS:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)


def parse(path: Path) -> PageParser:
    page = PageParser()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


def text_of(page: PageParser) -> str:
    return re.sub(r"\s+", " ", " ".join(page.texts))
