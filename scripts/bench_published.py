"""The published implementation, from a clone that stays untouched, made to run on this machine and on our crops.

Its own model, optimiser and training loop do the work. What is put in its way is small and all of it here: its data
are replaced by ours, `cuda()` does nothing where there is no GPU, its TensorBoard log is not opened, and its evaluation
is left out where the package for it is missing. Letters: B pairs, D dimensions, K keys in the queue.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from torch import Tensor

from mcontriever.errors import UsageError
from mcontriever.pairs import PairBatch

FILES = ("train.py", "src/moco.py", "src/utils.py", "src/data.py", "src/options.py")


class Published:
    """A run of the published MoCo: `step` takes a batch of ours and returns its loss."""

    def __init__(self, clone: Path, checkpoint: Path, **options: Any) -> None:
        """`checkpoint` is a folder in Hugging Face's layout with "xlm" in its path: by that it knows XLM-R."""
        self._train = _load(clone)
        with mock.patch.object(sys, "argv", ["train.py"]):
            self._options = importlib.import_module("src.options").Options().parse()
        given = {
            "retriever_model_id": str(checkpoint),
            "output_dir": str(checkpoint.parent / "published"),
            "num_workers": 0,
            "warmup_steps": 0,
            "scheduler": "linear",
            "lr_min_ratio": 1.0,  # a constant learning rate
            **options,
        }
        unknown = sorted(given.keys() - vars(self._options).keys())
        if unknown:
            raise ValueError(f"the clone's options have no {', '.join(unknown)}")
        vars(self._options).update(given)
        with _quiet(), _here():
            self.model = self._train.moco.MoCo(self._options).train()
        if torch.cuda.is_available():
            self.model = self.model.cuda()
        self._optimizer, self._scheduler = self._train.utils.set_optim(self._options, self.model)
        self._losses: list[float] = []
        self.model.register_forward_hook(lambda module, inputs, output: self._losses.append(output[0].item()))
        self._steps = 0

    @property
    def queue(self) -> Tensor:
        """Its keys, (K, D), for ours to begin with."""
        return self.model.queue.T.contiguous()  # type: ignore[no-any-return]

    def step(self, batch: PairBatch) -> float:
        """One step of its own training loop."""
        views = [side.split() for side in (batch.query.to("cpu"), batch.passage.to("cpu"))]
        data = _Data([{"q_tokens": query, "k_tokens": key} for query, key in zip(*views, strict=True)])
        self._options.per_gpu_batch_size, self._options.total_steps = len(data), self._steps + 1
        train = self._train
        ours = mock.patch.object(train.data, "load_data", return_value=data)
        no_log = mock.patch.object(train.utils, "init_tb_logger", return_value=None)  # it would open one every step
        with ours, no_log, _quiet(), _here():
            train.train(self._options, self.model, self._optimizer, self._scheduler, self._steps)
        self._steps += 1
        return self._losses[-1]


class _Data(torch.utils.data.Dataset[dict[str, Tensor]]):
    """One batch, in its order whatever index is asked for, so that both sides see the same."""

    def __init__(self, pairs: list[dict[str, Tensor]]) -> None:
        self._pairs, self._next = pairs, iter(pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return next(self._next)

    def generate_offset(self) -> None:
        """Called at the start of what it takes for an epoch."""
        self._next = iter(self._pairs)


def _load(clone: Path) -> Any:
    for name in FILES:
        if not (clone / name).is_file():
            raise UsageError(
                f"{clone}: no {name} in it; give a clone of the published code (facebookresearch/contriever)"
            )
    if not importlib.util.find_spec("beir"):
        sys.modules["src.beir_utils"] = types.ModuleType("src.beir_utils")  # its evaluation, which is never run here
    sys.path.insert(0, str(clone))
    specification = importlib.util.spec_from_file_location("published_train", clone / "train.py")
    if specification is None or specification.loader is None:
        raise UsageError(f"{clone}/train.py cannot be imported")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _here() -> Iterator[None]:
    """`cuda()` leaves a tensor where it is, on a machine without a GPU."""
    if torch.cuda.is_available():
        yield
    else:
        with mock.patch.object(Tensor, "cuda", lambda tensor, *_, **__: tensor):
            yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
