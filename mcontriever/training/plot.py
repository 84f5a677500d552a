"""`mcontriever plot RUN…`: the curves of one training run, or of several over each other, as one picture.

It reads metrics.jsonl and evaluation.jsonl and nothing else, so it may be asked while a run is still going.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifact import write_bytes, write_text
from ..errors import DataError, UsageError, require
from ..evaluation import curves
from ..evaluation.curves import Curve, Panel
from ..progress import duration
from . import metrics

TEMPLATE = Path(curves.__file__).with_name("curves.html")
Points = Sequence[Mapping[str, Any]]
# Title, and the values that are drawn in it: the first in a whole line, the second dashed.
_PANELS: dict[str, tuple[str, ...]] = {
    "Loss": ("loss",),
    "Accuracy among the negatives": ("accuracy",),
    "Scores: positive, and negative (dashed)": ("positive", "negative"),
    "Standard deviation of queries, and of keys (dashed)": ("query_std", "key_std"),
    "Norm of the gradient, before clipping": ("gradient_norm",),
    "Learning rate": ("learning_rate",),
    "Pairs a second": ("pairs_per_second",),
    "Share of the measured GEMM peak": ("gemm_share",),
    "Share of the time spent waiting for data": ("waiting",),
    "Share of padding, had there been any": ("padding",),
    "Share of pairs that are not what the recipe asks": ("fallback",),
    "Memory, GiB": ("memory_gib", "gpu_memory_gib"),
    "Steps skipped, and overflows of fp16 (dashed)": ("skipped", "overflows"),
}
_SHARES = ("accuracy",)  # their axis ends at 1
_WIDE = 30.0  # times the smallest: from there on an axis is logarithmic


@dataclass(frozen=True, kw_only=True)
class PlotSettings:
    """Draw the curves of training runs."""

    runs: tuple[str, ...]
    """folders of training runs, drawn over each other"""
    out: str = "curves.html"
    """picture to write: .html, .svg or .png"""
    only: tuple[str, ...] = ()
    """draw only the pictures whose titles begin so, such as Loss,MRR@10; by default all"""

    def __post_init__(self) -> None:
        if not self.runs:
            raise UsageError("--runs: name at least one folder of a training run")
        if Path(self.out).suffix not in (".html", ".svg", ".png"):
            raise UsageError(f"--out must end in .html, .svg or .png, got {self.out!r}")


@dataclass(frozen=True)
class Run:
    """What a run has logged so far."""

    name: str
    points: Points
    measured: Points


def plot(settings: PlotSettings) -> Path:
    """Draw what the runs have logged so far."""
    out = Path(settings.out)
    runs = [_read(Path(folder), name) for folder, name in zip(settings.runs, _names(settings.runs), strict=True)]
    panels = _chosen(list(_panels(runs)), settings.only)
    if out.suffix == ".html":
        write_text(out, _page(runs, panels))
    else:
        legend = [run.name for run in runs] if len(runs) > 1 else []
        write_bytes(out, curves.picture(panels, legend, "svg" if out.suffix == ".svg" else "png"))
    sys.stdout.write(f"{out}: {len(panels)} pictures of {', '.join(run.name for run in runs)}\n")
    return out


def _chosen(panels: list[Panel], only: Sequence[str]) -> list[Panel]:
    for begins in only:
        if not any(panel.title.startswith(begins) for panel in panels):
            titles = ", ".join(panel.title for panel in panels)
            raise UsageError(f"--only: no picture's title begins with {begins!r}; there are: {titles}")
    return [panel for panel in panels if panel.title.startswith(tuple(only))] if only else panels


def _read(folder: Path, name: str) -> Run:
    points = list(metrics.read(folder / metrics.NAME))
    if not points:
        raise DataError(
            f"{folder / metrics.NAME}: not there, or nothing in it yet; name the --output of a training run"
        )
    return Run(name, points, list(metrics.read(folder / metrics.EVALUATION)))


def _names(folders: Sequence[str]) -> list[str]:
    """The folders' last names, or as much of the paths as tells them apart."""
    parts = [Path(folder).resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise UsageError(f"--runs: a run is named twice among {', '.join(folders)}; name each once")
    depth = 1
    while len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def _panels(runs: Sequence[Run]) -> Iterator[Panel]:
    for title, keys in _PANELS.items():
        drawn = [
            Curve(f"{run.name} {key}", *_series(run.points, _getter(key)), colour=number, dash=dash)
            for number, run in enumerate(runs)
            for dash, key in enumerate(keys)
            if any(_getter(key)(point) is not None for point in run.points)
        ]
        values = [abs(value) for curve in drawn for value in curve.values if math.isfinite(value) and value]
        if not values:
            continue  # never logged, or never anything but 0
        wide = keys[0] in ("loss", "gradient_norm") and max(values) > _WIDE * min(values)
        yield Panel(title, drawn, highest=1.02 if keys[0] in _SHARES else None, logarithmic=wide)
    yield from _measures(runs)
    yield from (_languages(run, several=len(runs) > 1) for run in runs if any("languages" in p for p in run.points))


def _measures(runs: Sequence[Run]) -> Iterator[Panel]:
    """A panel a measure: the mean over the tasks of each run, and where there is one run alone, its tasks."""
    names = dict.fromkeys(name for run in runs for point in run.measured for name in point if "@" in name)
    for measure in dict.fromkeys(name.partition(" ")[0] for name in names):
        drawn = []
        for number, run in enumerate(runs):
            drawn.append(Curve(run.name, *_series(run.measured, _getter(f"{measure} mean")), colour=number))
            if len(runs) == 1:
                tasks = [name for name in names if name.startswith(f"{measure} ") and name != f"{measure} mean"]
                for place, task in enumerate(tasks):
                    label = task.partition(" ")[2]
                    steps, values = _series(run.measured, _getter(task))
                    look = {"colour": 1 + place % (curves.PALETTE - 1), "dash": place // (curves.PALETTE - 1)}
                    drawn.append(Curve(label, steps, values, **look, faint=True, told=True))
        title = f"{measure}, mean over the tasks" if len(runs) > 1 else f"{measure}: the mean (thick) and each task"
        yield Panel(title, drawn, highest=1.02)


def _languages(run: Run, *, several: bool) -> Panel:
    """What share of the pairs was of which language, since the beginning."""
    points = [point for point in run.points if "languages" in point]
    names = sorted({name for point in points for name in point["languages"]})
    drawn: dict[str, int] = dict.fromkeys(names, 0)
    shares: dict[str, list[float]] = {name: [] for name in names}
    for point in points:
        for name, count in point["languages"].items():
            drawn[name] += count
        total = sum(drawn.values())
        for name in names:
            shares[name].append(drawn[name] / total if total else math.nan)
    steps = [point["step"] for point in points]
    bands = [Curve(name, steps, shares[name], colour=number, told=True) for number, name in enumerate(names)]
    return Panel(
        "Languages drawn, share of all pairs so far" + (f": {run.name}" if several else ""), bands, kind="bands"
    )


def _getter(key: str) -> Callable[[Mapping[str, Any]], float | None]:
    if key == "waiting":
        return lambda point: point["seconds_waiting"] / point["seconds"] if "seconds_waiting" in point else None
    return lambda point: point.get(key)


def _series(points: Points, get: Callable[[Mapping[str, Any]], float | None]) -> tuple[list[float], list[float]]:
    values = [get(point) for point in points]
    return [point["step"] for point in points], [math.nan if value is None else float(value) for value in values]


def _page(runs: Sequence[Run], panels: Sequence[Panel]) -> str:
    jinja2 = require("jinja2", "eval", "the page of curves")
    markup = require("markupsafe", "eval", "the page of curves").Markup
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    facts = [_facts(run) for run in runs]
    return str(
        environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
            title=" · ".join(run.name for run in runs),
            style=markup(curves.style(":root")),
            columns=list(dict.fromkeys(name for told in facts for name in told)),
            runs=[(run.name, n % curves.PALETTE, told) for n, (run, told) in enumerate(zip(runs, facts, strict=True))],
            panels=[(panel.title, markup(curves.element(panel, f"panel {n}"))) for n, panel in enumerate(panels)],
        )
    )


def _facts(run: Run) -> dict[str, str]:
    """The run in a row of a table."""
    last, seconds = run.points[-1], sum(point["seconds"] for point in run.points)
    pairs = sum(point["pairs_per_second"] * point["seconds"] for point in run.points)
    facts = {
        "steps": f"{last['step']:,}",
        "time in steps": duration(seconds),
        "pairs": f"{pairs / 1e6:,.2f} M" if pairs >= 1e6 else f"{pairs:,.0f}",
        "pairs a second": f"{pairs / seconds:,.0f}" if seconds else "-",
        "last loss": "-" if last["loss"] is None else f"{last['loss']:.3f}",
        "last accuracy": "-" if last["accuracy"] is None else f"{last['accuracy']:.3f}",
    }
    measured = {name: value for name, value in (run.measured[-1] if run.measured else {}).items() if "@" in name}
    return facts | {f"last {name}": f"{value:.3f}" for name, value in measured.items() if name.endswith(" mean")}
