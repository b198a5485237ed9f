"""Self-contained HTML pages: one file that can be sent by mail, without scripts or links to other files."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from runner.utils.atomic_files import write_text

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; } thead th { position: sticky; top: 0; background: Canvas; }
tbody tr:hover { background: var(--soft); }
.wide { overflow: auto; max-height: 34rem; border: 1px solid var(--line); border-radius: 4px; }
.whole { max-height: 80vh; } .whole img { max-width: none; }
img { max-width: 100%; background: white; border-radius: 4px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .9rem; } .note { opacity: .8; }
"""


class Page:
    """A page that is written from top to bottom. All text is escaped."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self._parts = [f"<h1>{escape(title)}</h1>"]
        if subtitle:
            self.text(subtitle)

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f'<p class="note">{escape(text)}</p>')

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], scroll: bool = False) -> None:
        """Add a table whose first column is text and whose others are numbers; `scroll` for a long one."""
        head = "".join(f"<th>{escape(name)}</th>" for name in header)
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        self._parts.append(f'<div class="wide">{table}</div>' if scroll else table)

    def picture(self, file: Path, alt: str, scroll: bool = False) -> None:
        """Embed a PNG file; `scroll` keeps its full size."""
        image = _image(file, alt)
        self._parts.append(f'<div class="wide whole">{image}</div>' if scroll else image)

    def gallery(self, pictures: Sequence[tuple[Path, str]]) -> None:
        """Embed photographs (PNG files) with captions, side by side, compressed as WebP."""
        figures = "".join(
            f"<figure>{_photograph(file, caption)}<figcaption>{escape(caption)}</figcaption></figure>"
            for file, caption in pictures
        )
        self._parts.append(f'<div class="gallery">{figures}</div>')

    def html(self) -> str:
        """The whole page."""
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(self.title)}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
            f"<body>{''.join(self._parts)}</body></html>\n"
        )

    def write(self, path: Path) -> None:
        """Write the page to a file, atomically."""
        write_text(path, self.html())


def _image(file: Path, alt: str) -> str:
    return _embedded(file.read_bytes(), "png", alt)


def _photograph(file: Path, alt: str) -> str:
    from PIL import Image

    compressed = io.BytesIO()
    with Image.open(file) as image:
        image.convert("RGB").save(compressed, "webp", quality=85)
    return _embedded(compressed.getvalue(), "webp", alt)


def _embedded(content: bytes, file_format: str, alt: str) -> str:
    data = base64.b64encode(content).decode("ascii")
    return (
        f'<img src="data:image/{file_format};base64,{data}" alt="{escape(alt, quote=True)}" loading="lazy">'
    )
