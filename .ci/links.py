"""python .ci/links.py FOLDER: every link from one page of a built site to another leads to a file that is there."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page refers to, and the places in it that can be referred to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.places.add(value)


def dead(folder: Path) -> list[str]:
    others = {folder / "_static", folder / "asv"}  # templates, and pages that a program draws
    pages = {path: Page(path) for path in folder.rglob("*.html") if others.isdisjoint(path.parents)}
    found = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link == "#":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            if not target.is_file() or (place and target in pages and place not in pages[target].places):
                found.append(f"{path.relative_to(folder)}: {link}")
    return found


if __name__ == "__main__":
    lines = dead(Path(sys.argv[1]).resolve())
    print("\n".join(lines) or "no dead link")
    sys.exit(bool(lines))
