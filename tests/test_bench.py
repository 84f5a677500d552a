from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mcontriever import artifact
from mcontriever.corpus.prepare import PrepareSettings, prepare
from mcontriever.corpus.tokenizer import Tokenizer
from mcontriever.encoder import flops
from mcontriever.errors import SettingsError, UsageError
from mcontriever.pairs import Packed, PairBatch

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
TRAINING = ["training-fp32", "training-bf16", "training-best", "training-parity", "training-share"]
NAMES = ["loader-64", "loader-2048", "encoding", *TRAINING]


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
    assert made == [(name, True) for name in NAMES]
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
    with pytest.raises(SettingsError, match=r"published-fp32"):  # it needs --reference
        bench.main(["--case", "published-fp32"])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the cases leave it, of a small text instead of the sample: that takes seconds to prepare."""
    folder = tmp_path_factory.mktemp("bench")
    text = " ".join(f"Chapter {number}: how the coffee of year {number * 7} was roasted." for number in range(100))
    Tokenizer.train([text], 60).save(folder / "tokenizer")
    lines = [json.dumps({"_id": str(row), "text": f"{row} {text}"}) + "\n" for row in range(20)]
    artifact.write_text(folder / "corpus" / "en.jsonl", "".join(lines))
    given = {"corpus": str(folder / "corpus"), "out": str(folder / "shards"), "tokenizer": str(folder / "tokenizer")}
    prepare(PrepareSettings(**given))
    return folder


@pytest.fixture
def quick(bench: ModuleType, shards: Path) -> Callable[..., tuple[Any, Path]]:
    """Settings of a quick run, and the folder where shards lie once one of them was asked for."""
    return lambda **given: (bench.BenchSettings(quick=True, hidden=32, heads=2, **given), shards)


@pytest.mark.parametrize("size", [64, 2048])
def test_every_call_of_the_loader_makes_its_batches_anew(
    quick: Callable[..., tuple[Any, Path]], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    cases = importlib.import_module("bench_cases")
    monkeypatch.setattr(cases, "_same_size", lambda ours, peer: None)
    made: list[int] = []
    real = cases.UnlabelledPairs._make

    def counted(self: Any, numbers: Any, mixture: Any) -> Any:
        made.extend(numbers.tolist())
        return real(self, numbers, mixture)

    monkeypatch.setattr(cases.UnlabelledPairs, "_make", counted)
    case = cases.loader(*quick(), size=size)
    before = len(made)
    assert [case.ours(), case.ours()] == [4096, 4096]
    assert len(made) - before == 8192
    assert len(set(made)) == len(made)


def test_ours_and_the_naive_step_learn_the_same(quick: Callable[..., tuple[Any, Path]]) -> None:
    training = importlib.import_module("bench_training")
    settings, folder = quick()
    ours, naive = training._pair(training.make(settings, folder, dropout=0.0), training._queue(settings), "fp32")
    batches = training.crops(settings, folder, count=6)
    losses = [[side.step(batch) for side in (ours, naive)] for batch in batches]
    assert losses[0][0] != losses[1][0]
    for mine, expected in losses:
        assert mine == pytest.approx(expected, rel=1e-5)
    for name, parameter in naive.query.named_parameters():
        mine = ours.engine.module.model.get_parameter(name)
        torch.testing.assert_close(mine, parameter, atol=2e-5, rtol=0)
        key = ours.moco.encoder.module.model.get_parameter(name)
        # the published code averages before the keys are made, ours after the step: one average apart
        torch.testing.assert_close(key, naive.key.get_parameter(name) * 0.999 + parameter * 0.001, atol=1e-5, rtol=0)
    assert naive.pointer == ours.moco.queue.pointer == 6 * len(batches[0])


def test_the_share_of_the_peak_counts_what_the_model_needs(quick: Callable[..., tuple[Any, Path]]) -> None:
    training = importlib.import_module("bench_training")
    settings, folder = quick()
    case = training.base_share(settings, folder, pairs=4)  # XLM-R base's width on a GPU; here two layers of it
    config = training.make(dataclasses.replace(settings, hidden=768, heads=12), folder, dropout=0.0).config
    batch = training.crops(settings, folder)[0]
    expected = 3 * flops(config, batch.query.lengths) + flops(config, batch.passage.lengths)
    assert case.ours() == pytest.approx(expected / 1e9)
    assert case.peer() == pytest.approx(20 * 2 * 512**3 / 1e9)
    assert case.unit == "GFLOP/s"


def test_only_a_clone_of_the_published_code_is_run(quick: Callable[..., tuple[Any, Path]], tmp_path: Path) -> None:
    training = importlib.import_module("bench_training")
    settings, folder = quick(reference=str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match=r"nothing: no train.py in it; give a clone of the published code"):
        training.published_fp32(settings, folder)


CLONE = {
    "src/__init__.py": "",
    "src/beir_utils.py": "import a_package_that_is_not_there",
    "src/options.py": """
import argparse
class Options:
    def parse(self):
        names = "retriever_model_id output_dir num_workers warmup_steps scheduler lr_min_ratio queue_size momentum "
        names += "projection_size temperature lr beta1 beta2 eps weight_decay per_gpu_batch_size total_steps"
        return argparse.Namespace(**dict.fromkeys(names.split()))
""",
    "src/data.py": "def load_data(opt, tokenizer):\n    raise RuntimeError('its own data')\n",
    "src/utils.py": """
import torch
def init_tb_logger(folder):
    raise RuntimeError("a log")
def set_optim(opt, model):
    optimizer = torch.optim.SGD(model.parameters(), lr=opt.lr)
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
""",
    "src/moco.py": """
import torch
class MoCo(torch.nn.Module):
    def __init__(self, opt):
        super().__init__()
        self.weight, self.opt = torch.nn.Parameter(torch.zeros(())), opt
        self.queue = torch.arange(12.0).view(3, 4)
    def forward(self, q_tokens, k_tokens):
        labels = torch.zeros(len(q_tokens)).cuda()
        return (self.weight - sum(map(len, q_tokens)) - 10 * sum(map(len, k_tokens))).square(), {}
""",
    "train.py": """
from src import beir_utils, data, moco, utils
def train(opt, model, optimizer, scheduler, step):
    assert utils.init_tb_logger(opt.output_dir) is None
    dataset = data.load_data(opt, None)
    while step < opt.total_steps:
        dataset.generate_offset()
        assert len(dataset) == opt.per_gpu_batch_size
        pairs = [dataset[index] for index in reversed(range(len(dataset)))]
        loss, _ = model([pair["q_tokens"] for pair in pairs], [pair["k_tokens"] for pair in pairs])
        loss.backward()
        optimizer.step()
        model.zero_grad()
        step += 1
""",
}


def test_a_clones_own_loop_runs_on_our_crops(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in CLONE.items():
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clone" / name).write_text(text)
    for name in [name for name in sys.modules if name == "src" or name.startswith("src.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", list(sys.path))
    published = importlib.import_module("bench_published").Published(
        tmp_path / "clone", tmp_path / "xlm", lr=0.001, queue_size=4
    )
    assert published.queue.shape == (4, 3)
    sides = Packed(torch.arange(5), torch.tensor([2, 3])), Packed(torch.arange(3), torch.tensor([1, 2]))
    batch = PairBatch(*sides, torch.arange(2), torch.zeros(2, dtype=torch.long), ("en",))
    first, second = published.step(batch), published.step(batch)
    assert first == (5 + 10 * 3) ** 2  # every token of both sides, once
    assert second < first
    with pytest.raises(ValueError, match="have no frobs"):
        type(published)(tmp_path / "clone", tmp_path / "xlm", frobs=1)


@pytest.mark.slow
def test_the_real_cases_run_and_their_two_sides_agree(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "bench.py"), "--quick", "--out", str(tmp_path / "bench.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads((tmp_path / "bench.json").read_text())}
    assert list(rows) == [*NAMES[:-1], "training-share-64"]
    assert all(row["low"] <= row["ratio"] <= row["high"] and row["ours"] > 0 for row in rows.values())
