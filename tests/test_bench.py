from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from mcontriever.errors import SettingsError, UsageError

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("bench")


class World:
    """A clock that only the two sides move, and the order they were called in."""

    def __init__(self, ours: list[float], peer: list[float]) -> None:
        self.now, self.calls = 100.0, ""
        self.seconds: dict[str, Iterator[float]] = {"A": iter(ours), "B": iter(peer)}

    def clock(self) -> float:
        return self.now

    def side(self, name: str, amount: float) -> Callable[[], float]:
        def work() -> float:
            self.calls += name
            self.now += next(self.seconds[name])
            return amount

        return work


def test_sides_take_turns_and_the_warm_up_does_not_count(bench: ModuleType) -> None:
    # seconds of the warm-up and three rounds; 30 things a call
    world = World([50, 1, 2, 3], [99, 6, 6, 10])
    case = bench.Case("walk", "steps/s", world.side("A", 30), world.side("B", 30), "someone")
    result = bench.measure(case, 3, machine="here", commit="abc", clock=world.clock)
    assert world.calls == "ABABABAB"
    assert (result.ours, result.peer) == (15.0, 5.0)  # medians of 30, 15, 10 and of 5, 5, 3
    assert result.low == pytest.approx(3.0)
    assert result.ratio == pytest.approx(10 / 3)  # the median of 6, 3 and 10/3, not the ratio of the medians
    assert result.high == pytest.approx(6.0)
    assert (result.name, result.unit, result.machine, result.commit) == ("walk", "steps/s", "here", "abc")


def test_rates_count_what_each_side_did(bench: ModuleType) -> None:
    world = World([1, 2], [1, 2])
    case = bench.Case("uneven", "x/s", world.side("A", 10), world.side("B", 40), "someone")
    result = bench.measure(case, 1, clock=world.clock)
    assert (result.ours, result.peer, result.ratio) == (5.0, 20.0, 0.25)


def test_table_and_file(bench: ModuleType, tmp_path: Path) -> None:
    results = [
        bench.Result("loader", 12345.678, 100.0, "pairs/s", 123.45, 120.0, 130.0, "here", "abc"),
        bench.Result("encoding", 5.0, 10.0, "passages/s", 0.5, 0.4, 0.6, "here", "abc"),
    ]
    lines = bench.table(results, ["a", "b"]).splitlines()
    assert lines[0].split() == ["case", "ours", "peer", "unit", "ratio", "spread", "against"]
    assert lines[1].split() == ["loader", "12,345.7", "100.0", "pairs/s", "123.45x", "120.00-130.00", "a"]
    assert lines[2].split()[4:] == ["0.50x", "0.40-0.60", "b"]
    bench.write(results, tmp_path / "bench.json")
    rows = json.loads((tmp_path / "bench.json").read_text())
    keys = ["name", "ours", "peer", "unit", "ratio", "low", "high", "machine", "commit"]
    assert [list(row) for row in rows] == [keys, keys]
    assert rows[1]["ratio"] == 0.5


def test_main_runs_the_cases_asked_for(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[tuple[str, bool]] = []

    def maker(name: str) -> Callable[..., object]:
        def make(settings: object, folder: Path) -> object:
            made.append((name, folder.is_dir()))
            return bench.Case(name, "x/s", lambda: 2.0, lambda: 1.0, "someone")

        return make

    for name in list(bench.CASES):
        monkeypatch.setitem(bench.CASES, name, maker(name))
    bench.main(["--quick", "--out", str(tmp_path / "all.json")])
    assert made == [("loader", True), ("encoding", True)]
    (only,) = bench.main(["--case", "encoding", "--quick", "--out", str(tmp_path / "one.json")])
    assert only.name == "encoding"
    assert [row["name"] for row in json.loads((tmp_path / "one.json").read_text())] == ["encoding"]
    assert "encoding" in capsys.readouterr().out


def test_an_unknown_case_and_a_missing_gpu_are_refused(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"encodin.*did you mean 'encoding'"):
        bench.main(["--case", "encodin"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match="no GPU"):
        bench.main(["--gpu"])


@pytest.mark.slow
def test_the_real_cases_run_and_their_two_sides_agree(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "bench.py"), "--quick", "--out", str(tmp_path / "bench.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads((tmp_path / "bench.json").read_text())}
    assert list(rows) == ["loader", "encoding"]
    assert all(row["low"] <= row["ratio"] <= row["high"] and row["ours"] > 0 for row in rows.values())
