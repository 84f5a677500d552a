"""`mcontriever plot`: what the runs logged so far, together in one picture."""

import json
import re

import pytest

from mcontriever.cli import main
from mcontriever.errors import DataError, UsageError
from mcontriever.training import metrics
from mcontriever.training.plot import PlotSettings, _panels, _read, plot


def write(folder, steps=6, measured=True, **changes):
    folder.mkdir(parents=True)
    for step in range(1, steps + 1):
        line = {"step": step, "loss": 4.0 / step, "accuracy": 0.5, "positive": 1.0, "negative": -0.5, "query_std": 0.1}
        line |= {"key_std": 0.2, "gradient_norm": 3.0, "padding": 0.3, "learning_rate": 1e-3, "skipped": 0}
        line |= {"languages": {"ar": step, "en": 10 - step}, "seconds": 2.0, "seconds_waiting": 0.5}
        line |= {"pairs_per_second": 5.0, "tokens_per_second": 50.0, "memory_gib": 1.0}
        metrics.append(folder / metrics.NAME, line | changes)
        if measured:
            values = {"MRR@10 ar-en": 0.1 * step, "MRR@10 en-en": 0.12 * step, "MRR@10 mean": 0.11 * step}
            metrics.append(folder / metrics.EVALUATION, {"step": step, "seconds": 1.0, **values})
    return folder


def titles(page):
    return re.findall(r"<figcaption>([^<]+)</figcaption>", page)


def test_a_page_holds_a_picture_of_all_there_is(tmp_path, capsys):
    out = tmp_path / "curves.html"
    main(["plot", str(write(tmp_path / "run")), "--out", str(out)])
    page = out.read_text()
    assert titles(page) == [
        "Loss",
        "Accuracy among the negatives",
        "Scores: positive, and negative (dashed)",
        "Standard deviation of queries, and of keys (dashed)",
        "Norm of the gradient, before clipping",
        "Learning rate",
        "Pairs a second",
        "Share of the time spent waiting for data",
        "Share of padding, had there been any",
        "Memory, GiB",
        "MRR@10: the mean (thick) and each task",
        "Languages drawn, share of all pairs so far",
    ]
    assert not re.search(r'(?:src|href)="(?!#)', page)
    cells = re.findall(r"<td>([^<]+)</td>", page)
    assert cells == ["6", "0:12", "60", "5", "0.667", "0.500", "0.660"]
    assert "12 pictures of run" in capsys.readouterr().out


def test_runs_lie_over_each_other_and_are_told_apart(tmp_path):
    folders = [str(write(tmp_path / name / "run")) for name in ("a", "b,c")]
    out = tmp_path / "curves.html"
    main(["plot", *folders, "--out", str(out)])
    page = out.read_text()
    assert re.findall(r'<th scope="row"><i[^>]*--c(\d)[^>]*></i>([^<]+)</th>', page) == [
        ("0", "a/run"),
        ("1", "b,c/run"),
    ]
    assert "Languages drawn, share of all pairs so far: b,c/run" in titles(page)
    assert "MRR@10, mean over the tasks" in titles(page)


def test_what_is_drawn_is_what_was_logged(tmp_path):
    panels = {panel.title: panel for panel in _panels([_read(write(tmp_path / "run"), "run")])}
    (loss,) = panels["Loss"].curves
    assert (loss.steps[:3], loss.values[:2]) == ([1, 2, 3], [4.0, 2.0])
    assert [curve.values[0] for curve in panels["Scores: positive, and negative (dashed)"].curves] == [1.0, -0.5]
    assert panels["Share of the time spent waiting for data"].curves[0].values == [0.25] * 6
    bands = {curve.label: curve.values for curve in panels["Languages drawn, share of all pairs so far"].curves}
    assert bands["ar"][:3] == pytest.approx([0.1, 0.15, 0.2]), "since the beginning"
    assert [a + e for a, e in zip(bands["ar"], bands["en"], strict=True)] == pytest.approx([1.0] * 6)
    measured = panels["MRR@10: the mean (thick) and each task"].curves
    assert [curve.label for curve in measured] == ["run", "ar-en", "en-en"]
    assert measured[1].values == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


def test_a_run_of_an_older_kind_or_still_going_is_drawn_as_far_as_it_goes(tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    line = {"step": 1, "loss": None, "accuracy": 0.5, "learning_rate": 0.5, "seconds": 1.0, "pairs_per_second": 3.0}
    (folder / metrics.NAME).write_text(json.dumps(line) + "\n" + json.dumps(line | {"step": 2, "loss": 2.0}) + '\n{"st')
    out = plot(PlotSettings(runs=(str(folder),), out=str(tmp_path / "x.html")))
    assert titles(out.read_text()) == ["Loss", "Accuracy among the negatives", "Learning rate", "Pairs a second"]
    assert ">2.000</td>" in out.read_text()


@pytest.mark.parametrize(("suffix", "begins"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_other_kinds_of_files(tmp_path, suffix, begins):
    out = plot(PlotSettings(runs=(str(write(tmp_path / "run", steps=2)),), out=str(tmp_path / f"x.{suffix}")))
    assert out.read_bytes().startswith(begins)


def test_only_what_was_asked_for_is_drawn(tmp_path):
    run = str(write(tmp_path / "run", steps=2))
    page = plot(PlotSettings(runs=(run,), out=str(tmp_path / "x.html"), only=("Loss", "MRR@10")))
    drawn = titles(page.read_text())
    assert drawn
    assert {title.split()[0].rstrip(":") for title in drawn} == {"Loss", "MRR@10"}
    with pytest.raises(UsageError, match=r"--only: no picture's title begins with 'Lost'; there are: Loss, "):
        plot(PlotSettings(runs=(run,), out=str(tmp_path / "y.html"), only=("Loss", "Lost")))


def test_what_cannot_be_drawn_is_said(tmp_path):
    with pytest.raises(DataError, match=r"nothere/metrics.jsonl: not there, or nothing in it yet"):
        plot(PlotSettings(runs=(str(tmp_path / "nothere"),)))
    with pytest.raises(UsageError, match=r"--out must end in .html, .svg or .png, got 'x.pdf'"):
        PlotSettings(runs=("a",), out="x.pdf")
    with pytest.raises(UsageError, match="a run is named twice"):
        plot(PlotSettings(runs=("a", "./a")))
    with pytest.raises(UsageError, match="missing RUNS"):
        main(["plot"])
