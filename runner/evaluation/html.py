"""HTML pages from the templates in this package: one file each, without scripts or links to other files."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from runner.utils.atomic_files import write_text


def write_page(path: Path, template: str, **content: Any) -> None:
    """Write a page to a file, atomically. All text is escaped.

    Args:
        path: The file.
        template: Name of the file in `templates`.
        content: The variables of the template.
    """
    write_text(path, TEMPLATES.get_template(template).render(content))


def percent(share: float) -> str:
    """A share between 0 and 1 in percent; a dash for NaN."""
    return "–" if math.isnan(share) else f"{100 * share:.1f} %"


def png_address(file: Path) -> str:
    """The address of a PNG file whose content is embedded in the page."""
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def webp_address(file: Path) -> str:
    """The same for a photograph, compressed as WebP."""
    compressed = io.BytesIO()
    with Image.open(file) as image:
        image.convert("RGB").save(compressed, "webp", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(compressed.getvalue()).decode()}"


TEMPLATES = Environment(
    loader=PackageLoader("runner.evaluation"),
    autoescape=True,
    undefined=StrictUndefined,  # a misspelled variable is an error
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {
    "percent": percent,
    "thousands": "{:,}".format,
    "png_address": png_address,
    "webp_address": webp_address,
}
