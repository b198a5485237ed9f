"""HTML pages: text is escaped, images are embedded, nothing is fetched."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from jinja2 import ChoiceLoader, DictLoader, UndefinedError
from PIL import Image

from runner.evaluation import html

HOSTILE = "<script>alert('x')</script> & \"y\""
ESCAPED = "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;y&#34;"
BEGINNING = '{% extends "page.html.jinja" %}{% from "macros.html.jinja" import gallery, picture, table %}'

Render = Callable[..., str]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture
def render(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Render:
    """`render(body, …)`: the text of a page with this template as its body."""

    def render(body: str, title: str = "title", **content: object) -> str:
        own = DictLoader({"test": f"{BEGINNING}{{% block content %}}{body}{{% endblock %}}"})
        loaders = (html.TEMPLATES.loader, own)
        environment = html.TEMPLATES.overlay(loader=ChoiceLoader(loaders))
        monkeypatch.setattr(html, "TEMPLATES", environment)
        html.write_page(tmp_path / "page.html", "test", title=title, **content)
        return (tmp_path / "page.html").read_text()

    return render


def test_all_text_is_escaped(render: Render, image: Path) -> None:
    body = "<p>{{ text }}</p>{{ table([text], [[text]]) }}{{ picture(image, text) }}{{ gallery([(image, text)]) }}"
    page = render(body, title=HOSTILE, text=HOSTILE, image=image)
    assert "<script" not in page
    assert page.count(ESCAPED) == 8


def test_images_are_embedded_and_nothing_is_fetched(render: Render, image: Path) -> None:
    page = render('{{ picture(image, "a") }}{{ gallery([(image, "c")]) }}', image=image)
    sources = re.findall(r'(?:src|href)="([^"]{,20})', page)
    assert [source.split(";")[0] for source in sources] == ["data:image/png", "data:image/webp"]
    assert "http" not in page
    assert "url(" not in page


def test_a_long_table_scrolls(render: Render) -> None:
    page = render('{{ table(["name", "count"], [["a", "1"], ["b", "2"]], scroll=true) }}')
    assert '<div class="wide"><table>' in page
    assert page.count("<tr>") == 3


def test_a_misspelled_variable_is_an_error(render: Render) -> None:
    with pytest.raises(UndefinedError):
        render("{{ tittle }}")
