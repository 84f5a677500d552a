"""The encoding cases of `make bench` that hold ours against OpenVINO: the same weights and the same tokens.

OpenVINO compiles a graph for this processor; its int8 weights and activations are chosen by nncf from the sample's
texts. Batches are as it likes them here: of like lengths, 2 in bf16 and 4 in int8. Letters: N texts, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_common import BenchSettings, passages  # type: ignore[import-not-found]
from transformers import AutoModel

from mcontriever.encoder import Encoder, pooling, save

BATCH = {"bf16": 2, "int8": 4}
CALIBRATION = 64  # texts that nncf sees, others than those that are measured
MEASURED = 48


class _Pooled(torch.nn.Module):
    """transformers' model with the mean over what is no padding."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.model = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return pooling.pool_padded(hidden, attention_mask, "mean")


def peer(settings: BenchSettings, encoder: Encoder, folder: Path, precision: str) -> Callable[[list[str]], np.ndarray]:
    """Texts to vectors (N, D) by OpenVINO, in bf16 or int8."""
    import openvino

    saved = str(save(encoder, folder / "openvino", overwrite=True))
    ones = torch.ones(2, 8, dtype=torch.long)
    graph = openvino.convert_model(_Pooled(saved), example_input={"input_ids": ones, "attention_mask": ones})
    if precision == "int8":
        import nncf

        texts = passages(MEASURED + (16 if settings.quick else CALIBRATION))[MEASURED:]
        batches = [batch for _, batch in _batches(encoder, texts, 1)]
        graph = nncf.quantize(graph, nncf.Dataset(batches), model_type=nncf.ModelType.TRANSFORMER)
    wanted = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": settings.threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(graph, "CPU", wanted)

    def encode(texts: list[str]) -> np.ndarray:
        vectors = np.empty((len(texts), encoder.config.hidden_size), dtype=np.float32)
        for rows, batch in _batches(encoder, texts, BATCH[precision]):
            vectors[rows] = compiled(batch)[0]
        return vectors

    return encode


def _batches(encoder: Encoder, texts: list[str], size: int) -> list[tuple[list[int], dict[str, Any]]]:
    """Rows of texts of like lengths, and their tokens, padded."""
    tokenizer, limit = encoder.tokenizer, encoder.contract.passage_max_length
    sequences = [[tokenizer.bos, *ids[: limit - 2], tokenizer.eos] for ids in tokenizer.encode(texts)]
    order = sorted(range(len(texts)), key=lambda row: len(sequences[row]))
    found = []
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        lengths = np.array([len(sequences[row]) for row in rows])
        there = np.arange(lengths.max()) < lengths[:, None]  # (N, L)
        ids = np.full(there.shape, tokenizer.pad, dtype=np.int64)
        ids[there] = np.concatenate([sequences[row] for row in rows])
        found.append((rows, {"input_ids": ids, "attention_mask": there.astype(np.int64)}))
    return found
