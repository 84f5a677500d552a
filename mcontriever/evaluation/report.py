"""One page that tells a whole run: what was done, how training went, what came of it, question by question.

It is a single file that fetches nothing, so it can be sent to someone or opened years later. Curves are drawn as SVG
inside the page, in colours the page itself defines: that is how light and dark, and a phone's width, are served by one
file. Everything that comes from data is escaped.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..artifact import write_text
from ..corpus.formats import Query
from ..errors import require
from ..languages import language
from ..progress import duration
from ..retrieval.searcher import Hit
from .curves import Curve, Panel, element
from .tables import Results

TEMPLATE = Path(__file__).with_name("report.html")
_CURVES = {
    "loss": "Loss",
    "accuracy": "Accuracy: the share of queries whose own passage scored highest of all compared",
}


@dataclass(frozen=True)
class StepReport:
    """One command that was run: how long it took, and the most memory its processes held together (bytes)."""

    name: str
    command: str
    seconds: float
    memory: int


@dataclass(frozen=True)
class Training:
    """One training run and the lines of its metrics.jsonl."""

    name: str
    points: Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Answer:
    """A question that was asked, the ranking it got, and which passages are right by the qrels.

    `ranking` may hold more hits than are `shown`: the rank of the right passage is told whatever it is.
    """

    query: Query
    in_english: str
    ranking: Sequence[Hit]
    right: Collection[str]
    right_title: str
    shown: int = 3

    @property
    def hits(self) -> Sequence[Hit]:
        """What is shown."""
        return self.ranking[: self.shown]

    @property
    def rank(self) -> int | None:
        """Of the first right passage; None when it is not in the ranking."""
        return next((hit.rank for hit in self.ranking if hit.id in self.right), None)

    @property
    def verdict(self) -> str:
        """One plain sentence."""
        name = f"the right passage, “{self.right_title}”,"
        if self.rank is None:
            return f"Missed: {name} is not among the first {len(self.ranking)}."
        if self.rank > self.shown:
            return f"Missed: {name} came only at rank {self.rank}, below the {self.shown} shown."
        return f"Found: {name} came first." if self.rank == 1 else f"Found: {name} came at rank {self.rank}."


@dataclass(frozen=True)
class Bar:
    """One bar of a chart: which row (`number` of the system) and how long."""

    number: int
    system: str
    value: float


def write_report(
    path: Path | str,
    *,
    title: str,
    summary: str,
    facts: Mapping[str, str],
    steps: Sequence[StepReport],
    trainings: Sequence[Training],
    results: Results,
    answers: Sequence[Answer],
    notes: Sequence[str],
    next_commands: Mapping[str, str],
) -> None:
    """Write the page; `facts` are shown as given, `next_commands` maps what one may want to do to its command."""
    jinja2 = require("jinja2", "eval", "the report")
    markup = require("markupsafe", "eval", "the report").Markup
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"language": _name, "duration": duration, "memory": _memory}
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        summary=summary,
        facts=facts,
        steps=steps,
        curves=[
            (training, [(text, markup(draw_curve(training, key, text))) for key, text in _CURVES.items()])
            for training in trainings
        ],
        systems=list(dict.fromkeys(value.system for value in results.values)),
        charts=_charts(results),
        measure=results.measures[0],
        tables=[(measure, results.frame(measure)) for measure in results.measures],
        answers=answers,
        notes=notes,
        next_commands=next_commands,
    )
    write_text(path, page)


def draw_curve(training: Training, key: str, label: str) -> str:
    """One value of a training over its steps, as an SVG element for the inside of a page."""
    steps, values = [point["step"] for point in training.points], [point[key] for point in training.points]
    curve = Curve(training.name, steps, values)
    highest = 1.02 if key == "accuracy" else None
    return element(Panel(f"{training.name}: {label}", [curve], highest=highest), f"{training.name}-{key}")


def _charts(results: Results) -> list[tuple[str, list[tuple[str, list[Bar]]]]]:
    """Bars of the first measure: a chart for tasks within a language, one for tasks across, each with its mean."""
    frame = results.frame(results.measures[0])
    charts: list[tuple[str, list[tuple[str, list[Bar]]]]] = []
    tasks = {task: task.partition("-") for task in frame.columns if not task.startswith("mean ")}
    for heading, across, mean in (
        ("Questions and passages in the same language", False, "mean same"),
        ("Questions in one language, passages in another", True, "mean cross"),
    ):
        groups = []
        for column in [*(task for task, (asked, _, over) in tasks.items() if (asked != over) is across), mean]:
            if column in frame.columns:
                values = zip(frame.index, frame[column].tolist(), strict=True)
                bars = [Bar(number, system, value) for number, (system, value) in enumerate(values)]
                groups.append((_in_words(column), [bar for bar in bars if bar.value == bar.value]))  # NaN: not run
        if groups:
            charts.append((heading, groups))
    return charts


def _in_words(task: str) -> str:
    if task.startswith("mean "):
        return "Mean"
    asked, _, over = task.partition("-")
    return language(asked).name if asked == over else f"{language(asked).name} → {language(over).name}"


def _name(code: str) -> str:
    return language(code).name


def _memory(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size else "-"
