"""HTML pages: text is escaped, images are embedded, nothing is fetched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from runner.utils.html import Page

HOSTILE = "<script>alert('x')</script> & \"y\""
ESCAPED = "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;y&quot;"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "image.png")
    return tmp_path / "image.png"


def test_all_text_is_escaped(image: Path) -> None:
    page = Page(HOSTILE, HOSTILE)
    page.heading(HOSTILE)
    page.text(HOSTILE)
    page.table((HOSTILE,), [(HOSTILE,)])
    page.picture(image, HOSTILE)
    page.gallery([(image, HOSTILE)])
    html = page.html()
    assert "<script" not in html
    assert html.count(ESCAPED) == 10


def test_images_are_embedded_and_nothing_is_fetched(image: Path, tmp_path: Path) -> None:
    page = Page("title")
    page.picture(image, "a")
    page.picture(image, "b", scroll=True)
    page.gallery([(image, "c")])
    page.write(tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{,20})', html)
    assert [source.split(";")[0] for source in sources] == ["data:image/png"] * 2 + ["data:image/webp"]
    assert "http" not in html
    assert "url(" not in html


def test_a_long_table_scrolls() -> None:
    page = Page("title")
    page.table(("name", "count"), [("a", "1"), ("b", "2")], scroll=True)
    assert '<div class="wide"><table>' in page.html()
    assert page.html().count("<tr>") == 3
