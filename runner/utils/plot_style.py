"""TODO."""

from __future__ import annotations

BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#777777"
"""From the colour-blind safe palette of Okabe and Ito (2008)."""
