from __future__ import annotations

import re
import sys
from html.parser import HTMLParser

import pytest

from mcontriever.corpus.formats import Query
from mcontriever.errors import MissingExtra
from mcontriever.evaluation import Results, Value
from mcontriever.evaluation.report import Answer, StepReport, Training, draw_curve, write_report
from mcontriever.retrieval import Hit

HOSTILE = "<script>alert('&')</script>\"onload="
RANKING = [
    Hit("sauna.en", "Sauna", "Finland has many.", "en", 0.9, 1),
    Hit("coffee.ar", "القهوة", "القهوة مشروب.", "ar", 0.8, 2),
    Hit("tea.ja", "茶", "茶は飲み物です。", "ja", 0.7, 3),
    Hit("moon.en", "Moon", "It is far.", "en", 0.6, 4),
]
POINTS = [{"step": step, "loss": 5.0 / step, "accuracy": 1 - 1 / step, "tokens_per_second": 9.0} for step in (1, 2, 4)]


def answer(right: str, title: str = "T") -> Answer:
    return Answer(Query("q1", "أين القمر؟", "ar"), "Where is the moon?", RANKING, [right], title)


def results() -> Results:
    found = Results({"data": "somewhere"})
    values = {"BM25": (0.5, 0.7, 0.0, 0.1), "fine-tuned": (0.4, 0.6, 0.25, 0.35)}
    for system, numbers in values.items():
        for task, value in zip(("en-en", "sw-sw", "ar-en", "sw-en"), numbers, strict=True):
            found.add(Value(system, task, "MRR@10", value, 3, 9))
            found.add(Value(system, task, "Recall@10", value / 2, 3, 9))
    return found


def page(tmp_path, **changed):
    content = {
        "title": "A run",
        "summary": "In short.",
        "facts": {"Machine": "2 cores"},
        "steps": [StepReport("prepare", "mcontriever prepare a b", 125.0, 3 * 2**29), StepReport("index", "x", 1.0, 0)],
        "trainings": [Training("Pretraining", POINTS), Training("Fine-tuning", POINTS[:1])],
        "results": results(),
        "answers": [answer("sauna.en", "Sauna"), answer("moon.en", "Moon")],
        "notes": ["The passages searched were part of the unlabelled text."],
        "next_commands": {"Search:": "mcontriever search x 'y'"},
    }
    write_report(tmp_path / "report.html", **{**content, **changed})
    return (tmp_path / "report.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Tags with their attributes, ids, and the text outside of style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "path", "use"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag if tag not in {"path", "use"} else True

    def handle_data(self, data):
        if "style" not in self.open:
            self.words += f"{data} "


def test_the_page_says_everything_and_is_well_formed(tmp_path):
    text = page(tmp_path)
    read = Reader(text)
    assert read.open == []
    words = " ".join(read.words.split())
    for said in (
        "A run", "In short.", "2 cores", "mcontriever prepare a b", "2:05, 1.50 GiB at most", "0:01, - at most",
        "Arabic question, English passages", "أين القمر؟", "Where is the moon?", "القهوة مشروب.", "茶は飲み物です。",
        "Found: the right passage, “Sauna”, came first.",
        "Missed: the right passage, “Moon”, came only at rank 4, below the 3 shown.",
        "The passages searched were part of the unlabelled text.", "Arabic → English", "mean cross",
        "mcontriever search x 'y'",
    ):  # fmt: skip
        assert said in words, said
    assert "It is far." not in words  # rank 4 is not shown


def test_each_number_stands_in_the_table_and_each_bar_is_as_long_as_its_number(tmp_path):
    read = Reader(page(tmp_path))
    cells = read.words.split()
    for value in results().values:
        assert f"{value.value:.3f}" in cells
    bars = [attributes for tag, attributes in read.tags if tag == "div" and attributes.get("class") == "bar"]
    widths = re.findall(r"<i style=\"width: ([\d.]+)%", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(bars) == len(widths) == 2 * (2 + 1) * 2  # systems, tasks and their mean, charts
    for bar, width in zip(bars, widths, strict=True):
        assert float(bar["title"].rpartition(" ")[2]) == pytest.approx(float(width) / 100, abs=1e-3)


def test_text_carries_its_language_and_finds_its_own_direction(tmp_path):
    spans = [attributes for tag, attributes in Reader(page(tmp_path)).tags if tag == "span" and "lang" in attributes]
    assert all(span["dir"] == "auto" for span in spans)
    assert {span["lang"] for span in spans} == {"ar", "en", "ja"}


def test_nothing_is_fetched_and_nothing_is_run(tmp_path):
    text = page(tmp_path)
    assert "://" not in text
    assert not re.search(r"@import|url\((?!#)|<(script|link|img|iframe|object|embed)\b", text)
    read = Reader(text)
    for tag, attributes in read.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "xlink:href", "srcset"):
            assert (attributes.get(name) or "#").startswith("#"), tag


def test_hostile_text_stays_text(tmp_path):
    hits = [Hit(HOSTILE, HOSTILE, HOSTILE, HOSTILE, 0.5, 1)]
    found = results()
    found.add(Value(HOSTILE, "en-en", "MRR@10", 0.5, 3, 9))
    found.add(Value(HOSTILE, HOSTILE, "Recall@10", 0.5, 3, 9))
    text = page(
        tmp_path,
        title=HOSTILE,
        summary=HOSTILE,
        facts={HOSTILE: HOSTILE},
        steps=[StepReport(HOSTILE, HOSTILE, 1.0, 1)],
        trainings=[Training(HOSTILE, POINTS)],
        results=found,
        answers=[Answer(Query(HOSTILE, HOSTILE, HOSTILE), HOSTILE, hits, [HOSTILE], HOSTILE)],
        notes=[HOSTILE],
        next_commands={HOSTILE: HOSTILE},
    )
    assert "<script" not in text
    read = Reader(text)
    assert read.words.count(HOSTILE) > 12
    assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)


def test_a_curve_takes_its_colours_from_the_page_and_has_ids_of_its_own(tmp_path):
    svg = draw_curve(Training("Pretraining", POINTS), "loss", "Loss")
    assert svg == draw_curve(Training("Pretraining", POINTS), "loss", "Loss")
    assert re.findall(r"(?:stroke|fill): (#\w+)", svg) in ([], ["#000000"])
    assert {"var(--ink)", "var(--faint)", "var(--c0)"} <= set(re.findall(r"var\(--\w+\)", svg))
    assert 'aria-label="Pretraining: Loss"' in svg
    ids = [attributes["id"] for _, attributes in Reader(page(tmp_path)).tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0
    for used in re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", page(tmp_path)):
        assert "".join(used) in ids


@pytest.mark.parametrize(
    ("right", "rank", "verdict"),
    [
        ("sauna.en", 1, "Found: the right passage, “T”, came first."),
        ("tea.ja", 3, "Found: the right passage, “T”, came at rank 3."),
        ("moon.en", 4, "Missed: the right passage, “T”, came only at rank 4, below the 3 shown."),
        ("sun.en", None, "Missed: the right passage, “T”, is not among the first 4."),
    ],
)
def test_the_verdict_is_what_the_ranking_says(right, rank, verdict):
    assert (answer(right).rank, answer(right).verdict) == (rank, verdict)


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_what_is_not_installed_is_named(tmp_path, monkeypatch, library):
    for module in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtra, match=re.escape("pip install 'mcontriever[eval]'")):
        page(tmp_path)
    assert not (tmp_path / "report.html").exists()
