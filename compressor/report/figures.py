"""Numbers and names as people read them, in few characters (pure)."""

from __future__ import annotations

MISSING = "–"

_DECIMAL_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(value: float | None) -> str:
    """Return a count with three significant digits and a decimal prefix: 2.71 M."""
    if value is None:
        return MISSING
    for step, prefix in _DECIMAL_STEPS:
        if value >= step * 0.9995:
            return f"{_three_digits(value / step)} {prefix}"
    return f"{value:.0f}"


def size(value: int | None) -> str:
    """Return a size on disk in decimal bytes: 5.43 MB."""
    if value is None:
        return MISSING
    text = count(value)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as percent: 60.0 %."""
    return MISSING if share is None else f"{100 * share:.{digits}f} %"


def points(difference: float) -> str:
    """Return a difference of two shares in signed percentage points: −0.5."""
    text = f"{100 * difference:+.1f}"
    return "±0.0" if float(text) == 0 else text.replace("-", "−")


def figure(value: float | None) -> str:
    """Return a positive quantity such as NC1 with three significant digits: 0.512, 113, 1.2e+05."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e4:
        return f"{value:.1e}"
    return _three_digits(value)


def nats(divergence: float | None) -> str:
    """Return a divergence with three significant digits, however small: 0.00312."""
    return MISSING if divergence is None else f"{divergence:.3g}"


def duration(seconds: float) -> str:
    """Return a time span: 8.2 s, 3 min 20 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def shorten(name: str, width: int) -> str:
    """Cut a long name in its middle, so that block number and role of a layer stay readable.

    Args:
        name: A dotted module name.
        width: Characters at most, at least 3.
    """
    if len(name) <= width:
        return name
    tail = (width - 1) * 2 // 3
    return f"{name[: width - 1 - tail]}…{name[len(name) - tail :]}"


def _three_digits(value: float) -> str:
    magnitude = abs(value)
    decimals = 0 if magnitude >= 99.95 else 1 if magnitude >= 9.995 else 2
    if magnitude < 0.9995:
        decimals = 3
    return f"{value:.{decimals}f}"
