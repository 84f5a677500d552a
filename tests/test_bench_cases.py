"""The cases of `make bench`: both sides do the same work, and the published code runs as it is."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mcontriever import artifact
from mcontriever.corpus.prepare import PrepareSettings, prepare
from mcontriever.corpus.tokenizer import Tokenizer
from mcontriever.encoder import flops
from mcontriever.errors import UsageError
from mcontriever.pairs import Packed, PairBatch

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("bench")


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
    ours, naive = training._pair(training.make(settings, folder, dropout=0.0), training.queue_of(settings), "fp32")
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
