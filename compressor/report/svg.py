"""A matplotlib figure as SVG that takes its colours and its font from the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#1d1d1b"
FAINT = "#8a8a86"
RULE = "#d6d6d1"
PRIMARY = "#1b5e8c"
SECOND = "#b4552d"
THIRD = "#3d7a4a"
FOURTH = "#7a4f8f"
SERIES = (PRIMARY, SECOND, THIRD, FOURTH)
"""What lines of several methods or runs are drawn in, in turn."""

VARIABLES: Mapping[str, str] = {
    INK: "--ink",
    FAINT: "--faint",
    RULE: "--rule",
    PRIMARY: "--series-1",
    SECOND: "--series-2",
    THIRD: "--series-3",
    FOURTH: "--series-4",
}
"""Each colour that figures use, and the variable of the page's style sheet that stands for it."""

STYLE: Any = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "compressor",
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
"""Settings of matplotlib under which every figure is drawn."""


def inline(figure: Figure, *, label: str, prefix: str) -> str:
    """Return a figure as an ``<svg>`` element for a page.

    Args:
        figure: Drawn in the colours of this module. It holds no text from files.
        label: What it shows, for those who cannot see it; plain words.
        prefix: What its ids begin with, so that figures of one page do not share any.
    """
    text = standalone(figure)
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def standalone(figure: Figure) -> str:
    """Return a figure as an SVG file, the same for the same figure."""
    import matplotlib as mpl

    stream = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(
            stream, format="svg", metadata={"Date": None}, facecolor=figure.get_facecolor()
        )
    return stream.getvalue()
