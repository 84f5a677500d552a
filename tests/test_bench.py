"""`make bench`: how a case is timed, what the table and the file say, and how a run that was cut short goes on."""

from __future__ import annotations

import functools
import importlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

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
        bench.Result("encoding-fp32", 5.0, 10.0, "passages/s", 0.5, 0.4, 0.6, "here", "abc"),
    ]
    lines = bench.table(results, ["a", "b"]).splitlines()
    assert lines[0].split() == ["case", "ours", "peer", "unit", "ratio", "spread", "against"]
    assert lines[1].split() == ["loader", "12,345.7", "100.0", "pairs/s", "123.45x", "120.00-130.00", "a"]
    assert lines[2].split()[4:] == ["0.50x", "0.40-0.60", "b"]
    bench.write(tmp_path / "bench.json", results, ["a", "b"], {"commit": "abc"}, complete=True)
    told = json.loads((tmp_path / "bench.json").read_text())
    assert {name: told[name] for name in told if name != "rows"} == {
        "complete": True,
        "run": {"commit": "abc"},
        "peers": ["a", "b"],
    }
    rows = told["rows"]
    keys = ["name", "ours", "peer", "unit", "ratio", "low", "high", "machine", "commit"]
    assert [list(row) for row in rows] == [keys, keys]
    assert rows[1]["ratio"] == 0.5


def test_seconds_are_the_process_s_own_with_one_thread_and_the_wall_s_with_more(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: 7.0)
    assert bench.clock_of(bench.BenchSettings(threads=1)) is time.process_time
    assert bench.clock_of(bench.BenchSettings(threads=2))() == 7.0


class Cases:
    """In place of the real ones: which were made, and what the file held before; the case `fails` is not measured."""

    def __init__(self, bench: ModuleType, monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
        self.bench, self.out, self.fails = bench, out, ""
        self.made: list[str] = []
        self.seen: list[Any] = []
        monkeypatch.setattr(bench, "ON_CPU", {})  # what it holds depends on the machine and on what is installed
        self.names = list(bench.CASES)
        for name in self.names:
            monkeypatch.setitem(bench.CASES, name, functools.partial(self.make, name=name))

    def make(self, settings: object, folder: Path, *, name: str) -> object:
        assert folder.is_dir()
        self.made.append(name)
        self.seen.append(self.told() if self.out.exists() else None)
        if name == self.fails:
            raise KeyboardInterrupt
        return self.bench.Case(name, "x/s", lambda: 2.0, lambda: 1.0, f"not {name}")

    def told(self) -> Any:
        return json.loads(self.out.read_text())

    def written(self) -> list[str]:
        return [row["name"] for row in self.told()["rows"]]

    def run(self, *words: str) -> Any:
        return self.bench.main(["--quick", "--out", str(self.out), *words])


@pytest.fixture
def cases(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cases:
    return Cases(bench, monkeypatch, tmp_path / "bench.json")


def test_main_runs_the_cases_asked_for_and_writes_each_as_it_ends(
    cases: Cases, capsys: pytest.CaptureFixture[str]
) -> None:
    cases.run()
    names = cases.names
    assert cases.made == cases.written() == names
    assert cases.told()["complete"] is True
    assert cases.seen[0] is None
    for count, told in enumerate(cases.seen[1:], 1):
        assert (told["complete"], [row["name"] for row in told["rows"]]) == (False, names[:count])
    said = capsys.readouterr().err
    assert re.findall(r"(\S+): case (\d+) of (\d+), since \d\d:\d\d:\d\d", said) == [
        (name, str(number), str(len(names))) for number, name in enumerate(names, 1)
    ]
    (only,) = cases.run("--case", "training-fp32")
    assert only.name == "training-fp32"
    assert cases.written() == ["training-fp32"]
    assert cases.told()["complete"] is True
    assert "training-fp32" in capsys.readouterr().out
    assert [path.name for path in cases.out.parent.iterdir()] == ["bench.json"]


def test_a_run_that_was_cut_short_goes_on_only_when_asked(cases: Cases, capsys: pytest.CaptureFixture[str]) -> None:
    cases.fails = cases.names[2]
    with pytest.raises(KeyboardInterrupt):
        cases.run()
    assert cases.written() == cases.names[:2]
    first, cases.fails, cases.made = cases.told()["rows"], "", []
    results = cases.run("--resume")
    assert cases.made == cases.names[2:]
    assert [result.name for result in results] == cases.written() == cases.names
    assert cases.told()["rows"][:2] == first
    assert (cases.told()["complete"], cases.told()["peers"]) == (True, [f"not {name}" for name in cases.names])
    assert "not loader-64" in capsys.readouterr().out
    cases.made = []
    cases.run()
    assert cases.made == cases.names


def test_only_the_same_run_goes_on(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"bench\.json holds no results to go on from .*leave out --resume"):
        cases.run("--resume")
    cases.run()
    before = cases.out.read_text()
    for words, said in (
        (["--texts", "7"], "texts 7, not 200"),
        (["--case", "training-fp32"], "case 'training-fp32', not ''"),
    ):
        with pytest.raises(UsageError, match=said):
            cases.run("--resume", *words)
    monkeypatch.setattr(cases.bench, "_commit", lambda: "another")
    with pytest.raises(UsageError, match=r"is of another run \(now commit 'another', not ") as caught:
        cases.run("--resume")
    assert "\n" not in str(caught.value)
    assert cases.out.read_text() == before
    for damaged in ("[]", "{", '{"run": {}, "peers": [], "rows": [{}]}'):
        cases.out.write_text(damaged)
        with pytest.raises(UsageError, match="holds no results to go on from"):
            cases.run("--resume")


def test_an_unknown_case_and_a_missing_gpu_are_refused(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"training-fp3.*did you mean 'training-fp32'"):
        bench.main(["--case", "training-fp3"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match="no GPU"):
        bench.main(["--gpu"])
    with pytest.raises(SettingsError, match=r"published-fp32"):  # it needs --reference
        bench.main(["--case", "published-fp32"])


@pytest.mark.slow
def test_the_real_cases_run_and_their_two_sides_agree(bench: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "bench.py"), "--quick", "--out", str(tmp_path / "bench.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "bench.json").read_text())
    assert told["complete"]
    rows = {row["name"]: row for row in told["rows"]}
    names = [name if name != "training-share" else "training-share-64" for name in bench.CASES]
    assert list(rows) == [*names, *bench.ON_CPU]
    assert {"encoding-fp32", "encoding-openvino-bf16", "training-share-64"} <= set(rows)
    assert all(row["low"] <= row["ratio"] <= row["high"] and row["ours"] > 0 for row in rows.values())
