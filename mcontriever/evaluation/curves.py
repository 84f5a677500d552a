"""Curves as pictures: one as an element of a page, or many as one file.

Drawn by matplotlib, in colours that stand in for names: the page or the SVG file itself defines what these look like,
so that light and dark are served by one file. A PNG is light.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import require

_POINTS = 200  # of a curve, more of which cannot be told apart and would make pages of many megabytes
_NAMES = ("--ink", "--faint", "--page", *(f"--c{number}" for number in range(8)))


def _palette(colours: str) -> dict[str, str]:
    return dict(zip(_NAMES, colours.split(), strict=True))


_LIGHT = _palette("#23262b #e4e4df #ffffff #1f6fb5 #d1600f #2a7f4f #9a3fb0 #b3261e #0e8a8a #80700a #5d636d")
_DARK = _palette("#e6e7e9 #33373e #1e2126 #6db3f2 #f29b55 #69c98f #cf93e0 #f08a76 #4fc7c7 #c9b84a #a0a6b0")
_STAND_INS = {name: f"#04{number:02x}04" for number, name in enumerate(_NAMES)}  # matplotlib wants colours
PALETTE = 8  # colours of curves; the next has the first again
_DASHES = ["solid", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5))]


@dataclass(frozen=True)
class Curve:
    """One line: its values over steps. Where a value is missing (NaN) the line is broken."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    colour: int = 0
    dash: int = 0
    faint: bool = False
    told: bool = False
    """whether the label is written at the line's end"""


@dataclass(frozen=True)
class Panel:
    """One picture of curves over the same steps."""

    title: str
    curves: Sequence[Curve]
    kind: Literal["lines", "bands"] = "lines"
    """bands: shares of a whole, one above the other"""
    highest: float | None = None
    """where the axis ends; by default a little above the curves"""
    logarithmic: bool = False
    from_zero: bool = True


def style(selector: str) -> str:
    """The stylesheet that gives the names their colours, light and dark."""
    light, dark = ("; ".join(f"{name}: {colour}" for name, colour in said.items()) for said in (_LIGHT, _DARK))
    return f"{selector} {{ {light} }} @media (prefers-color-scheme: dark) {{ {selector} {{ {dark} }} }}"


def element(panel: Panel, name: str, size: tuple[float, float] = (4.4, 2.2)) -> str:
    """The panel as an SVG element for the inside of a page that defines the names; `name` is unique on the page.

    The title is not drawn: it is what the element is called by those who cannot see it.
    """
    with _settings(name):
        figure = _figure(size)
        _draw(figure.add_subplot(), panel, _STAND_INS)
        svg = _saved(figure)
    return _for_page(svg, panel.title, re.sub(r"\W", "-", name))


def picture(panels: Sequence[Panel], legend: Sequence[str], kind: Literal["svg", "png"]) -> bytes:
    """All panels as one file, two a row; `legend` names the palette's colours."""
    lines = require("matplotlib.lines", "eval", "curves")
    paint, rows = _STAND_INS if kind == "svg" else _LIGHT, -(-len(panels) // 2)
    with _settings("curves"):
        figure = _figure((10.5, 2.6 * rows + 0.4))
        figure.set_facecolor(paint["--page"])
        for number, panel in enumerate(panels, start=1):
            axes = figure.add_subplot(rows, 2, number)
            axes.set_title(panel.title, color=paint["--ink"], loc="left", fontsize=10, fontweight="bold")
            _draw(axes, panel, paint)
        keys = [lines.Line2D([], [], color=_colour(paint, number), linewidth=3) for number in range(len(legend))]
        figure.legend(keys, legend, loc="outside upper left", ncols=4, frameon=False, labelcolor=paint["--ink"])
        if kind == "svg":
            return _with_style(_saved(figure, transparent=False)).encode()
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=150, metadata={"Software": None})
        return stream.getvalue()


def _figure(size: tuple[float, float]) -> Any:
    return require("matplotlib.figure", "eval", "curves").Figure(figsize=size, layout="constrained")


def _settings(name: str) -> Any:
    library = require("matplotlib", "eval", "curves")
    return library.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9})


def _colour(paint: Mapping[str, str], number: int) -> str:
    return paint[f"--c{number % PALETTE}"]


def _draw(axes: Any, panel: Panel, paint: Mapping[str, str]) -> None:
    ticker = require("matplotlib.ticker", "eval", "curves")
    curves = [_thinned(curve) for curve in panel.curves]
    if panel.kind == "bands":
        _bands(axes, curves, paint)
    else:
        for curve in curves:
            axes.plot(
                curve.steps,
                curve.values,
                color=_colour(paint, curve.colour),
                linestyle=_DASHES[curve.dash % len(_DASHES)],
                linewidth=1.0 if curve.faint else 1.6,
                alpha=0.6 if curve.faint else 1.0,
                marker="o" if np.isfinite(np.asarray(curve.values, float)).sum() < 3 else "",
                markersize=4,
            )
        values = [value for curve in curves for value in curve.values if math.isfinite(value)]
        if panel.logarithmic and values and min(values) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(ticker.NullFormatter())
        elif panel.highest is not None:
            axes.set_ylim(0, panel.highest)
        elif panel.from_zero and values:
            axes.set_ylim(min(0, 1.08 * min(values)), max(0, 1.08 * max(values)) or 1)
        _tell(axes, [(curve.label, curve.values, curve.colour) for curve in curves if curve.told], paint)
    axes.set_xlabel("step", color=paint["--ink"])
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
    axes.grid(visible=True, color=paint["--faint"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_facecolor("none")
    axes.tick_params(which="both", colors=paint["--ink"], length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _bands(axes: Any, curves: Sequence[Curve], paint: Mapping[str, str]) -> None:
    shares = np.nan_to_num(np.array([curve.values for curve in curves], float))  # (L, N)
    tops = shares.cumsum(axis=0)
    for curve, top, share in zip(curves, tops, shares, strict=True):
        axes.fill_between(
            curve.steps,
            top - share,
            top,
            color=_colour(paint, curve.colour),
            alpha=0.75,
            linewidth=0.6,
            edgecolor=paint["--page"],
        )
    axes.set_ylim(0, 1)
    ends = zip(curves, tops[:, -1], shares[:, -1], strict=True)
    _tell(axes, [(curve.label, [top - share / 2], curve.colour) for curve, top, share in ends], paint)


def _tell(axes: Any, ends: Iterable[tuple[str, Sequence[float], int]], paint: Mapping[str, str]) -> None:
    """Write labels at the curves' right ends, moved apart where they would lie on each other."""
    low, high = axes.get_ylim()
    log = axes.get_yscale() == "log"
    places = []
    for label, values, colour in ends:
        last = next((value for value in reversed(values) if math.isfinite(value)), None)
        if last is not None:
            place = math.log(last / low) / math.log(high / low) if log else (last - low) / (high - low)
            places.append((place, label, colour))
    places.sort()
    gap = min(0.085, 1 / max(1, len(places)))
    heights = [place for place, _, _ in places]
    for number in range(1, len(heights)):
        heights[number] = max(heights[number], heights[number - 1] + gap)
    if heights and heights[-1] > 1:
        heights[-1] = 1.0
        for number in range(len(heights) - 2, -1, -1):
            heights[number] = min(heights[number], heights[number + 1] - gap)
    for height, (_, label, colour) in zip(heights, places, strict=True):
        axes.annotate(
            label,
            (1.01, height),
            xycoords="axes fraction",
            color=_colour(paint, colour),
            fontsize=7.5 if gap >= 0.08 else 6,
            verticalalignment="center",
        )


def _thinned(curve: Curve) -> Curve:
    """At most so many points, each the mean of its neighbours."""
    count = len(curve.steps)
    if count <= _POINTS:
        return curve
    edges = np.linspace(0, count, _POINTS + 1).astype(int)
    values = np.asarray(curve.values, float)
    means = [
        float(np.mean(part[np.isfinite(part)])) if np.isfinite(part).any() else math.nan
        for part in (values[start:stop] for start, stop in itertools.pairwise(edges))
    ]
    steps = [float(curve.steps[stop - 1]) for stop in edges[1:]]
    return Curve(curve.label, steps, means, curve.colour, curve.dash, curve.faint, curve.told)


def _saved(figure: Any, *, transparent: bool = True) -> str:
    stream = io.StringIO()
    empty = dict.fromkeys(["Creator", "Date", "Format", "Type"])
    figure.savefig(stream, format="svg", transparent=transparent, metadata=empty)
    return stream.getvalue()


def _named(svg: str) -> str:
    """The page's names in place of the stand-ins, and its font."""
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for name, colour in _STAND_INS.items():
        svg = svg.replace(colour, f"var({name})")
    return svg


def _for_page(svg: str, label: str, prefix: str) -> str:
    """A whole SVG file made an element: no prolog, no addresses, ids of its own, the page's colours and font."""
    escape = require("markupsafe", "eval", "curves").escape
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    box = svg.partition(' viewBox="')[2].partition('"')[0]
    return _named(f'<svg viewBox="{box}" role="img" aria-label="{escape(label)}">' + svg.partition(">")[2])


def _with_style(svg: str) -> str:
    """A whole SVG file with the colours of the names, and a font, in it."""
    start = svg.index(">", svg.index("<svg")) + 1
    font = "text { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', Arial, sans-serif }"
    return svg[:start] + f"\n<style>{style(':root')} {font}</style>" + _named(svg[start:])
