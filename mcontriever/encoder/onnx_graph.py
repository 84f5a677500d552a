"""An encoder as an ONNX graph: token ids and mask in, finished vectors out; no other code has to know the rules.

Ours are layers on packed tokens, which no runtime has; transformers' own padded model is given our weights and written
instead. The graph pools, projects and normalises as the contract says.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import require
from . import pooling
from .model import ARCHITECTURES, Encoder

FILE = "model.onnx"
OPSET = 20
INPUTS, OUTPUT = ("input_ids", "attention_mask"), "vectors"
_EXTRA = "onnx"
_SINGLE_FILE = 1_500_000_000  # bytes of weights beyond which they lie beside the graph: protobuf ends at 2 GiB


class _Graph(nn.Module):
    """What is written: (B, S) ids and mask to (B, D)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        config = copy.deepcopy(encoder.config)  # its kind of attention is about to change
        self.model = ARCHITECTURES[config.model_type][1](config, add_pooling_layer=False)
        self.model.set_attn_implementation("eager")
        self.model.load_state_dict(encoder.model.state_dict())
        self.contract = encoder.contract
        self.projection = None if encoder.projection is None else _Product(encoder.projection)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (B, S, D)
        pooled = pooling.pool_padded(hidden, attention_mask, self.contract.pooling)
        return pooling.finish(pooled, self.projection, self.contract)


class _Product(nn.Module):
    """A linear layer as MatMul and Add: ONNX Runtime's quantiser cannot turn a Gemm with weights beside the graph."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(linear.weight.T.contiguous()), linear.bias

    def forward(self, rows: Tensor) -> Tensor:
        return rows @ self.weight + self.bias


def require_libraries() -> None:
    """Complain before any work unless what is needed for it is installed."""
    for module in ("onnx", "onnxruntime", "onnxscript"):
        require(module, _EXTRA, "writing ONNX")


def write(encoder: Encoder, folder: Path) -> None:
    """The graph, in fp32, as `model.onnx` in the folder."""
    graph = _Graph(encoder).eval()
    ids = torch.tensor([[encoder.tokenizer.bos, encoder.tokenizer.unk, encoder.tokenizer.eos]] * 2)  # any; 2 rows, not
    mask = torch.ones_like(ids)  # 1, because a size of 1 would be taken for a constant
    axes = {0: "batch", 1: "sequence"}
    size = sum(parameter.nbytes for parameter in graph.parameters())
    with torch.no_grad():
        torch.onnx.export(
            graph,
            (ids, mask),
            folder / FILE,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_shapes=dict.fromkeys(INPUTS, axes),
            opset_version=OPSET,
            dynamo=True,
            external_data=size > _SINGLE_FILE,
            verbose=False,
        )


def quantise(folder: Path) -> None:
    """The folder's graph with weights in int8, in place of the fp32 one; activations are quantised as they come."""
    quantization = require("onnxruntime.quantization", _EXTRA, "int8")
    fp32, int8 = folder / FILE, folder / "int8.onnx"
    quantization.quantize_dynamic(
        fp32,
        int8,
        per_channel=True,
        # 7 bits: without VNNI, products of 8 run over, and what was measured here would not hold there
        reduce_range=True,
        weight_type=quantization.QuantType.QInt8,
        use_external_data_format=(folder / f"{FILE}.data").exists(),
    )
    for file in folder.glob(f"{FILE}*"):
        file.unlink()
    int8.rename(fp32)  # weights beside it keep the name that the graph has for them


def runner(folder: Path) -> Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]:
    """A function of ids and mask that runs the folder's graph on the CPU."""
    session: Any = require("onnxruntime", _EXTRA, "running ONNX").InferenceSession(
        str(folder / FILE), providers=["CPUExecutionProvider"]
    )

    def run(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = session.run([OUTPUT], dict(zip(INPUTS, (ids, mask), strict=True)))[0]
        return vectors

    return run
