"""Reads pages back, for tests."""

import csv
from collections import Counter
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link"}


class Reader(HTMLParser):
    """Tags, text, tables and image sources of a page; `open` holds tags that were not closed."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.sources = Counter(), [], []
        self.ids, self.links, self.tables, self.text = [], [], [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        self.tags[tag] += 1
        self.sources += [known["src"]] if "src" in known else []
        self.ids += [known["id"]] if "id" in known else []
        self.links += [known["href"]] if "href" in known else []
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if "table" in self.open and {"th", "td"} & set(self.open):
            self.tables[-1][-1][-1] += data


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
