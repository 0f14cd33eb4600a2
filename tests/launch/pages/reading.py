"""Reads pages as a browser does: sections, cells of tables, figures."""

import dataclasses
import html.parser

_VOID = ("meta", "img")


@dataclasses.dataclass
class Section:
    """A section of a page: the rows of its table, header included, and what its figures and notes say."""

    rows: list[list[str]] = dataclasses.field(default_factory=list)
    figures: list[str] = dataclasses.field(default_factory=list)
    captions: list[str] = dataclasses.field(default_factory=list)
    text: str = ""

    def column(self, title):
        """The cells of a column, without the header."""
        header = next(place for place, row in enumerate(self.rows) if title in row)
        return [row[self.rows[header].index(title)] for row in self.rows[header + 1 :]]


class Page(html.parser.HTMLParser):
    """A page in which every element is closed; a cell's lines are separated by newlines."""

    def __init__(self, path):
        super().__init__()
        self.sections: dict[str, Section] = {}
        self.heading, self.subtitle, self.tags = "", "", set()
        self._open: list[str] = []
        self._section = Section()
        self.feed(path.read_text())
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        named = dict(attrs)
        for value in named.values():
            assert not (value or "").startswith("http"), value
        if tag == "section":
            assert named["id"] not in self.sections, "two sections of one name"
            self._section = self.sections[named["id"]] = Section()
        elif tag == "tr":
            self._section.rows.append([])
        elif tag in ("td", "th"):
            self._section.rows[-1].append("")
        elif tag == "span":
            self._section.rows[-1][-1] += "\n"
        elif tag == "figcaption":
            self._section.captions.append("")
        elif tag == "img":
            assert named["src"].startswith("data:image/png;base64,")
            self._section.figures.append(named["alt"])
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, tag

    def handle_data(self, data):
        if {"td", "th"} & set(self._open):
            self._section.rows[-1][-1] += data
        elif "figcaption" in self._open:
            self._section.captions[-1] += data
        elif "h1" in self._open:
            self.heading += data
        elif "section" in self._open:
            self._section.text += data
        elif self._open[-1:] == ["p"]:
            self.subtitle += data


def markdown(text):
    """The cells of a Markdown table, without the line below the header."""
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines()]
    return [lines[0], *lines[2:]]
