from __future__ import annotations

import pytest

from mcontriever.errors import DataError
from mcontriever.evaluation.tables import Results, Value


@pytest.fixture
def results():
    found = Results({"data": "somewhere"})
    for system, first, second in (("zeta", 0.25, 0.75), ("BM25", 0.5, 1.0)):
        found.add(Value(system, "sw-en", "MRR@10", first, 3, 9))
        found.add(Value(system, "ar-en", "MRR@10", second, 3, 9))
        found.add(Value(system, "sw-en", "Recall@10", 1.0, 3, 9))
    return found


def test_frame_keeps_the_order_given_and_adds_the_mean(results):
    frame = results.frame("MRR@10")
    assert list(frame.index) == ["zeta", "BM25"]
    assert list(frame.columns) == ["sw-en", "ar-en", "mean cross"]
    assert frame.loc["BM25", "mean cross"] == pytest.approx(0.75)
    assert list(results.frame("Recall@10").columns) == ["sw-en"]


def test_tasks_within_and_across_languages_have_a_mean_each(results):
    for task, value in (("sw-sw", 0.1), ("zh-hant-zh-hant", 0.3)):
        results.add(Value("BM25", task, "MRR@10", value, 3, 9))
    frame = results.frame("MRR@10")
    assert frame.loc["BM25", "mean same"] == pytest.approx(0.2)
    assert frame.loc["BM25", "mean cross"] == pytest.approx(0.75)


def test_a_system_that_lacks_a_task_has_no_mean(results):
    results.add(Value("half", "ar-en", "MRR@10", 0.5, 3, 9))
    assert "| half | - | 0.500 | - |" in results.markdown()


def test_markdown(results):
    assert results.markdown().splitlines()[:4] == [
        "| MRR@10 | sw-en | ar-en | mean cross |",
        "| --- | ---: | ---: | ---: |",
        "| zeta | 0.250 | 0.750 | 0.500 |",
        "| BM25 | 0.500 | 1.000 | 0.750 |",
    ]


def test_terminal_holds_every_number_and_keeps_its_width(results):
    for task in range(30):
        results.add(Value("BM25", f"t{task}-en", "MRR@10", 0.125, 3, 9))
    text = results.terminal(width=80)
    assert text.count("0.125") == 30
    assert max(map(len, text.splitlines())) <= 80


def test_json_round_trip_and_damage(results, tmp_path):
    results.save(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json") == results
    (tmp_path / "results.json").write_text('{"about": {}}')
    with pytest.raises(DataError, match="not the results"):
        Results.read(tmp_path / "results.json")
    with pytest.raises(DataError, match="no such file"):
        Results.read(tmp_path / "absent.json")
    with pytest.raises(DataError, match="there are: MRR@10, Recall@10"):
        results.frame("nDCG@10")
