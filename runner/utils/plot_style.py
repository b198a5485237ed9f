"""Colors of all figures: distinguishable for color-blind readers (Okabe & Ito, Color Universal Design, 2008)."""

BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#777777"
