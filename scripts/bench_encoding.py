"""The encoding cases of `make bench`: a model of XLM-R base's shape, passages to vectors, from text.

The peer is sentence-transformers with the same weights: as it comes (fp32, batches of 32 in the order of length it
chooses) and at its best (bf16, batches of 2); or OpenVINO. Vectors are compared before any time is taken.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_common import BenchSettings, Case, passages, prepared  # type: ignore[import-not-found]
from transformers.utils import logging

from mcontriever.corpus.shards import Shards
from mcontriever.encoder import Encoder, ModelSettings, flops, save
from mcontriever.encoder.units import has_bf16, lacking

LENGTH = 256  # tokens of a passage at most
APART = 0.9  # lowest cosine to the peer that vectors less the mean of all may have
NEAR = 0.9999  # lowest cosine to fp32 that bf16 may have
TEXTS = 48  # of a base model a second's work each, on a core
Encode = Callable[[list[str]], np.ndarray]


def fp32(settings: BenchSettings, folder: Path) -> Case:
    """Both in fp32: the same vectors."""
    encoder, texts = _model(settings, folder), _texts(settings)
    return _case("encoding-fp32", texts, _ours(encoder, "fp32"), _peer(encoder, folder, 32), "default, fp32", 1 - 1e-6)


def best(settings: BenchSettings, folder: Path) -> Case:
    """Ours in bf16 against the peer as it comes."""
    encoder, texts = _model(settings, folder), _texts(settings)
    return _case("encoding-best", texts, _ours(encoder, "bf16"), _peer(encoder, folder, 32), "default, fp32", NEAR)


def both_best(settings: BenchSettings, folder: Path) -> Case:
    """Both in bf16, the peer with the batch that suits it best."""
    encoder, texts, size = _model(settings, folder), _texts(settings), 128 if settings.gpu else 2
    peer = _peer(encoder, folder, size, torch.bfloat16)
    return _case("encoding-bf16", texts, _ours(encoder, "bf16"), peer, f"bf16, batches of {size}", 0.999)


def int8(settings: BenchSettings, folder: Path) -> Case:
    """Ours in int8 against ours in bf16."""
    encoder, texts = _model(settings, folder), _texts(settings)
    ours, peer = _ours(copy.deepcopy(encoder), "int8"), _ours(encoder, "bf16")
    return _case("encoding-int8", texts, ours, peer, "ours in bf16", 0.99, software="")


def openvino(settings: BenchSettings, folder: Path, precision: str) -> Case:
    """Ours against OpenVINO in the same precision; how near either is to ours in fp32 is told."""
    from bench_openvino import BATCH, peer  # type: ignore[import-not-found]

    encoder, texts = _model(settings, folder), _texts(settings)
    ours, theirs = _ours(copy.deepcopy(encoder), precision), peer(settings, encoder, folder, precision)
    exact = _ours(encoder, "fp32")(texts)
    near = [
        _agreed(f"encoding-openvino, {whose} in {precision}", encode(texts), exact, least)
        for whose, encode, least in (("ours", ours, 0.999), ("OpenVINO's", theirs, 0.9))
    ]
    encoder.release()
    told = f"OpenVINO, {precision}, batches of {BATCH[precision]}; cosine to fp32 ours {near[0]:.5f}, its {near[1]:.5f}"
    return Case(f"encoding-openvino-{precision}", "passages/s", _turn(ours, texts), _turn(theirs, texts), told)


def share(settings: BenchSettings, folder: Path) -> Case:
    """The arithmetic that ours does in a second in bf16, against a large product of matrices in bf16."""
    encoder, texts = _model(settings, folder), _texts(settings)
    ours = _ours(encoder, "bf16")
    limit = encoder.contract.passage_max_length
    work = flops(encoder.config, [min(len(ids) + 2, limit) for ids in encoder.tokenizer.encode(texts)]) / 1e9
    size = 512 if settings.quick else 8192 if settings.gpu else 2048
    left, right = torch.randn(2, size, size, device=settings.device).bfloat16()
    result = left @ right

    def encode() -> float:
        ours(texts)
        return work

    def product() -> float:
        for _ in range(20):
            torch.mm(left, right, out=result)
        return 20 * 2 * size**3 / 1e9

    return Case("encoding-share", "GFLOP/s", encode, product, f"a product of two {size} x {size} matrices, bf16")


def _case(
    name: str,
    texts: list[str],
    ours: Encode,
    peer: Encode,
    how: str,
    near: float,
    software: str = "sentence-transformers, ",
) -> Case:
    cosine = _agreed(name, ours(texts), peer(texts), near)
    peer_name = f"{software}{how}; cosine {cosine:.5f} or more"
    return Case(name, "passages/s", _turn(ours, texts), _turn(peer, texts), peer_name)


def _agreed(name: str, first: np.ndarray, second: np.ndarray, least: float) -> float:
    """The lowest cosine of any text's two vectors, if it is `least` or more and what tells texts apart agrees too.

    Random weights give all texts about the same vector: only without their mean would one for all be noticed.
    """
    middle = second.mean(0)
    cosine, apart = _lowest_cosine(first, second), _lowest_cosine(first - middle, second - middle)
    if not (cosine >= least and apart >= APART):  # a NaN is no agreement either
        found = f"lowest cosine {cosine:.6f}, without the mean {apart:.4f}"
        raise AssertionError(f"{name}: {found}, expected {least} and {APART} or more; the vectors differ")
    return cosine


def _lowest_cosine(first: np.ndarray, second: np.ndarray) -> float:
    cosines = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    return float(cosines.min())


def _turn(encode: Encode, texts: list[str]) -> Callable[[], float]:
    return lambda: float(len(encode(texts)))


def _texts(settings: BenchSettings) -> list[str]:
    return passages(  # type: ignore[no-any-return]
        16 if settings.quick else 2000 if settings.gpu else min(settings.texts, TEXTS)
    )


def _model(settings: BenchSettings, folder: Path) -> Encoder:
    """XLM-R base's shape with random weights; the words are the sample's, for none of them costs arithmetic."""
    shape = ModelSettings(layers=12, hidden=768, heads=12, intermediate=3072)
    if settings.quick:
        shape = ModelSettings(layers=2, hidden=64, heads=2, intermediate=128)
    tokenizer = Shards.open(prepared(settings, folder)).tokenizer()
    return Encoder.random(shape, tokenizer, passage_max_length=LENGTH).to(settings.device).eval()


def _ours(encoder: Encoder, precision: str) -> Encode:
    encoder.precision = precision
    return lambda texts: encoder.encode_passages(texts)


def _peer(encoder: Encoder, folder: Path, size: int, dtype: torch.dtype = torch.float32) -> Encode:
    from sentence_transformers import SentenceTransformer, models

    logging.disable_progress_bar()
    path = str(save(encoder, folder / "sentence-transformers", overwrite=True))
    transformer = models.Transformer(path, max_seq_length=LENGTH, model_args={"dtype": dtype})
    pooling = models.Pooling(transformer.get_word_embedding_dimension(), "mean")
    model = SentenceTransformer(modules=[transformer, pooling], device=str(encoder.device))

    def encode(texts: list[str]) -> np.ndarray:
        found: Any = model.encode(texts, batch_size=size, show_progress_bar=False, convert_to_tensor=True)
        return found.float().cpu().numpy()  # type: ignore[no-any-return]

    return encode


def _has(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) for module in modules)


Maker = Callable[[BenchSettings, Path], Case]
INT8 = has_bf16() and not lacking("int8")
CASES: dict[str, Maker] = {"encoding-share": share}
if _has("sentence_transformers"):
    CASES |= {"encoding-fp32": fp32, "encoding-best": best, "encoding-bf16": both_best}
ON_CPU: dict[str, Maker] = {"encoding-int8": int8} if INT8 else {}
if _has("openvino"):
    ON_CPU["encoding-openvino-bf16"] = functools.partial(openvino, precision="bf16")
    if INT8 and _has("nncf"):
        ON_CPU["encoding-openvino-int8"] = functools.partial(openvino, precision="int8")
MISSING = [name for name in ("sentence_transformers", "openvino", "nncf") if not _has(name)]
