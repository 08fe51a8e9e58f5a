"""One self-contained HTML page: no request, no script; readable on a phone and in the dark."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from pidm_core import encode_jpeg, encode_png, resized
from pidm_reid.table import Grid, Strong

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 128  # px; larger pictures are made smaller
QUALITY = 85
BINS = 24
REPORT = "report.html"
ROOM = 5.0  # beside the first and last point of a plot
COLOURS = (
    "#0a84d6", "#e0660a", "#109e73", "#c766a0", "#c99700", "#8f7ee0", "#d0453c", "#7a8794",
)  # fmt: skip
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆"}
_INK = "#010203"  # matplotlib's, until it becomes the page's own colour
_STYLE = """
:root {
  --paper: #fafafa; --ink: #1c1c1e; --soft: #5c5c63; --line: #d3d3d8; --card: #fff; --red: #b3261e;
  --shade: #0003;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #17181a; --ink: #ececee; --soft: #a5a7ad; --line: #3c3e44; --card: #232528;
    --red: #ff8a80; --shade: #0009;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 0 1rem 2rem; max-width: 75rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: 1.5rem; line-height: 1.25; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
p { margin: .5rem 0; max-width: 45rem; }
.soft, figcaption { color: var(--soft); font-size: .8125rem; }
.wide { /* a shade at the right edge as long as more lies there */
  overflow-x: auto; margin: .5rem 0 1rem; background:
    linear-gradient(to left, var(--paper) 1rem, transparent) right / 3rem 100% no-repeat local,
    linear-gradient(to left, var(--shade), transparent) right / .8rem 100% no-repeat scroll;
}
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td {
  padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  white-space: nowrap; overflow-wrap: normal;
}
th { color: var(--soft); font-weight: 600; }
tr > :first-child { position: sticky; left: 0; padding-left: 0; background: var(--paper); }
.group th { padding-top: 1rem; background: none; color: var(--ink); }
.group span { position: sticky; left: 0; }
svg { display: block; width: 100%; max-width: 40rem; height: auto; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; padding: 0; list-style: none; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem; }
.card {
  padding: .75rem; border: 1px solid var(--line); border-radius: .5rem; background: var(--card);
}
.card p { margin: .25rem 0 0; font-size: .875rem; }
.strip { display: grid; grid-template-columns: repeat(4, 1fr); gap: .5rem; }
.nothing {
  display: grid; place-items: center; aspect-ratio: 1 / 2; border: 1px dashed var(--line);
  border-radius: .25rem; text-align: center;
}
.dropped { border-color: var(--red); }
.dropped strong { color: var(--red); }
figure { margin: 0; min-width: 0; }
img { display: block; width: 100%; border-radius: .25rem; }
pre {
  padding: .75rem; white-space: pre-wrap; background: var(--card); border: 1px solid var(--line);
}
pre, code { font-size: .8125rem; }
@media (max-width: 30rem) { th, td { padding: .25rem .35rem; } }
@media (max-width: 24rem) { .cards { grid-template-columns: 1fr; } }
"""


def page(title: str, body: str) -> bytes:
    """The whole page; `body` is HTML, `title` text."""
    name = escape(title)
    text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{name}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{name}</h1>
{body}
</body>
</html>
"""
    return text.encode(errors="replace")  # a file name need not be UTF-8


def escape(value: object) -> str:
    """Text from outside, to stand in a page or in a quoted attribute."""
    return html.escape(str(value))


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>\n"


def details(title: str, value: object) -> str:
    """A JSON value to be unfolded."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return f"<details><summary>{escape(title)}</summary>\n<pre>{escape(text)}</pre></details>\n"


def table(grid: Grid) -> str:
    """A table that scrolls sideways where it is too wide, with its note below.

    Neighbouring rows that begin with the same cell become a group with that cell as its title.
    """
    starts = [row[0] for row in grid.rows]
    grouped = any(one == other for one, other in pairwise(starts))
    header, bodies = grid.header[grouped:], []
    for first, rows in groupby(grid.rows, key=lambda row: row[0] if grouped else ""):
        title = f"<span>{escape(grid.header[0])}: {escape(first)}</span>"
        line = f'<tr class="group"><th colspan="{len(header)}" scope="rowgroup">{title}</th></tr>\n'
        lines = [f"<tr>{''.join(map(_cell, row[grouped:]))}</tr>\n" for row in rows]
        bodies.append(f"<tbody>\n{line * grouped}{''.join(lines)}</tbody>")
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    note = f'<p class="soft">{escape(grid.note)}</p>\n' if grid.note else ""
    body = "\n".join([f"<thead><tr>{head}</tr></thead>", *bodies])
    return f'<div class="wide" tabindex="0"><table>\n{body}</table></div>\n{note}'


def _cell(text: str) -> str:
    inner = f"<strong>{escape(text)}</strong>" if isinstance(text, Strong) else escape(text)
    return f"<td>{inner}</td>"


# ---------------------------------------------------------------- pictures


def picture(image: np.ndarray, *, alt: str, drawn: bool = False) -> str:
    """An image uint8 (H, W, 3), at most 128 px high, in the page itself; as PNG if `drawn`."""

    height, width = image.shape[:2]
    if height > HEIGHT:
        image = resized(image, (HEIGHT, max(1, round(width * HEIGHT / height))))
    data = encode_png(image) if drawn else encode_jpeg(image, quality=QUALITY)
    kind = "png" if drawn else "jpeg"
    code = base64.b64encode(data).decode()
    return f'<img src="data:image/{kind};base64,{code}" alt="{escape(alt)}">'


# ---------------------------------------------------------------- plots


@dataclass(frozen=True)
class Series:
    """A line of a plot: points from left to right."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None  # half lengths of the error bars
    dashed: bool = False
    style: int = 0  # equal ones have one colour and marker


def line_plot(series: Sequence[Series], *, x: str, y: str, alt: str) -> str:
    """Lines with error bars as inline SVG, and their legend."""
    drawn = _svg(_lines(series, x, y), alt)
    return drawn + _legend([(one.label, one.style, one.dashed) for one in series])


def plot_file(series: Sequence[Series], *, x: str, y: str) -> bytes:
    """The same lines as a PNG file on white, with their legend in it."""
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    _lines(series, x, y)(axes)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _lines(series: Sequence[Series], x: str, y: str) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        for k, one in enumerate(series):
            colour, marker = _look(one.style)
            shift = 0.0 if one.dashed else 0.3 * (k - len(series) / 2)  # bars side by side
            axes.errorbar(
                [value + shift for value in one.x],
                one.y,
                yerr=one.spread,
                color=colour,
                marker=marker,
                markersize=4,
                linewidth=1.2,
                linestyle="--" if one.dashed else "-",
                capsize=2,
                label=one.label,
            )
        places = sorted({value for one in series for value in one.x})
        axes.set_xticks(places)
        axes.set_xlim(places[0] - ROOM, places[-1] + ROOM)  # else the shifts fill a single place
        axes.set_xlabel(x)
        axes.set_ylabel(y)

    return draw


def histogram(values: Mapping[str, Sequence[float]], *, x: str, y: str, alt: str) -> str:
    """Shares of several sets of numbers in common bins as inline SVG, and their legend."""
    edges = np.histogram_bin_edges(np.concatenate([*map(np.asarray, values.values())]), BINS)

    def draw(axes: Axes) -> None:
        for k, one in enumerate(values.values()):
            shares = np.histogram(one, edges)[0] / max(1, len(one))
            axes.stairs(shares, edges, color=_look(k)[0], linewidth=1.4)
        axes.set_xlabel(x)
        axes.set_ylabel(y)

    legend = [(f"{name} ({len(v):,})", k, False) for k, (name, v) in enumerate(values.items())]
    return _svg(draw, alt) + _legend(legend)


def _look(style: int) -> tuple[str, str]:
    markers = tuple(MARKERS)
    return COLOURS[style % len(COLOURS)], markers[style // len(COLOURS) % len(markers)]


def _legend(entries: Sequence[tuple[str, int, bool]]) -> str:
    """In HTML: it wraps on a phone, and names of any script or length are only escaped."""
    items = []
    for label, style, dashed in entries:
        colour, marker = _look(style)
        sign = f"{MARKERS[marker]}{' ╌' if dashed else ''}"
        sign = f'<span style="color:{colour}" aria-hidden="true">{sign}</span>'
        items.append(f"<li>{sign} {escape(label)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>\n'


def _svg(draw: Callable[[Axes], None], alt: str) -> str:
    """The same drawing gives the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.hashsalt": "pidm",
        "svg.fonttype": "none",
        "font.size": 11,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "text.color": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "grid.color": _INK,
        "grid.alpha": 0.15,
        "axes.grid": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    buffer = io.StringIO()
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
        draw(figure.add_subplot())
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _inline(buffer.getvalue(), alt)


def _inline(svg: str, alt: str) -> str:
    """Without what only a file of its own needs: prologue, name spaces, names of groups."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # they stand in every figure of a page
    svg = svg.replace(_INK, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)
