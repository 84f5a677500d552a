"""An encoder written for other software: sentence-transformers, plain transformers, ONNX. Nothing is kept unchecked.

Whatever is written is read again by the software it is for, and its vectors of the golden texts must be ours. The first
two are checkpoints of ours as well, contract and all, so that the same folder opens on both sides.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from .. import artifact
from . import agreement, card, onnx_graph, pooling
from .agreement import Agreement, Vectors
from .card import Card
from .checkpoint import KIND, save_outline, save_weights
from .contract import CheckpointError, Contract
from .model import Encoder
from .sentence_transformers_folder import ACTIVATIONS, MODULES, POOLING_MODES

ONNX = "onnx encoder"
FORMATS = {
    "checkpoint": KIND,
    "sentence-transformers": KIND,
    "huggingface": KIND,
    "onnx": ONNX,
    "onnx-int8": ONNX,
}
TOLERANCE = {"checkpoint": 1e-5, "sentence-transformers": 1e-6, "huggingface": 1e-5, "onnx": 1e-5}
"""Largest difference of a coordinate, as a share of its vector's length, that fp32 in another order explains."""
FLOOR = 0.99
"""Lowest cosine of any text that int8 may have to fp32 unless the loss is accepted."""


def write(
    encoder: Encoder,
    out: Path | str,
    *,
    format: str,
    about: Card,
    beside: Mapping[str, str],
    meta: Mapping[str, Any],
    accept_loss: bool = False,
    overwrite: bool = False,
) -> Agreement | None:
    """Write the encoder in a format of `FORMATS` with its card and the texts `beside` it; what the check found.

    Our own checkpoint holds the very weights and is read by the very code, and so is not compared.
    """
    if format == "huggingface" and encoder.projection is not None:
        raise CheckpointError(
            "a plain Hugging Face folder has no place for this encoder's projection; "
            "give --format sentence-transformers, onnx or checkpoint"
        )
    if FORMATS[format] == ONNX:
        onnx_graph.require_libraries()
    with artifact.writing(out, FORMATS[format], overwrite=overwrite) as draft:
        encoder.config.dtype = torch.float32  # what is written, whatever it was loaded from
        save_outline(encoder, draft.folder)
        _state_length(draft.folder, encoder.contract)
        for name, text in beside.items():
            artifact.write_text(draft.folder / name, text)
        with _quiet():
            found = _PARTS[format](encoder, draft.folder)
        draft.meta |= {"architecture": encoder.contract.architecture, "format": format, **meta}
        if found:
            _judge(found, format, str(out), accept_loss=accept_loss)
            draft.meta["checked"] = dataclasses.asdict(found)
        if FORMATS[format] == ONNX:
            draft.meta["opset"] = onnx_graph.OPSET
        card.write(draft, dataclasses.replace(about, format=format, agreement=found), encoder.contract)
    return found


def _judge(found: Agreement, format: str, out: str, *, accept_loss: bool) -> None:
    if format == "onnx-int8":
        if not (found.minimum_cosine >= FLOOR or accept_loss):
            raise CheckpointError(
                f"{out}: not written: in int8 a text's vector has cosine {found.minimum_cosine:.4f} to its own in fp32 "
                f"(mean {found.mean_cosine:.4f}; different texts {found.others_cosine:.4f}), below {FLOOR}; "
                "give --accept_loss to keep it all the same"
            )
    elif not found.difference <= (allowed := TOLERANCE[format]):  # a NaN is no agreement either
        raise CheckpointError(
            f"{out}: not written: {found.by} gives vectors that differ from ours by {found.difference:.1e} of their "
            f"length, lowest cosine {found.minimum_cosine:.6f}; expected at most {allowed:.0e}"
        )


def _sentence_transformers(encoder: Encoder, folder: Path) -> Agreement:
    said = encoder.contract
    save_weights(encoder.state_dict(), folder)
    modules = ["Transformer", "Pooling", *["Dense"] * bool(said.projection), *["Normalize"] * said.normalise]
    places = {kind: f"{row}_{kind}" if row else "" for row, kind in enumerate(modules)}
    # the older names and keys: every version reads them
    _json(
        folder / MODULES,
        [
            {"idx": row, "name": str(row), "path": place, "type": f"sentence_transformers.models.{kind}"}
            for row, (kind, place) in enumerate(places.items())
        ],
    )
    length = max(said.query_max_length, said.passage_max_length)
    lengths = {"query_length": said.query_max_length, "document_length": said.passage_max_length}
    differ = said.query_max_length != said.passage_max_length
    _json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": length, "do_lower_case": said.lowercase, **(lengths if differ else {})},
    )
    _json(
        folder / "config_sentence_transformers.json",
        {
            "prompts": {"query": said.query_prefix, "document": said.passage_prefix},
            "default_prompt_name": None,
            "similarity_fn_name": said.similarity,
        },
    )
    wide = encoder.config.hidden_size
    modes: dict[str, Any] = {"word_embedding_dimension": wide}
    modes |= {f"pooling_mode_{mode}": name == said.pooling for name, mode in POOLING_MODES.items()}
    _json(folder / places["Pooling"] / "config.json", modes)
    if encoder.projection is not None:
        dense = folder / places["Dense"]
        shape = {"in_features": wide, "out_features": said.dimension, "bias": True}
        _json(dense / "config.json", {**shape, "activation_function": ACTIVATIONS[said.projection]})
        linear = {f"linear.{name}": value.detach().cpu() for name, value in encoder.projection.state_dict().items()}
        artifact.save_tensors(dense / "model.safetensors", linear)
    if said.normalise:
        _json(folder / places["Normalize"] / "config.json", {})  # a hub keeps no empty folder
    if importlib.util.find_spec("sentence_transformers") is None:
        return _compare_plain(encoder, folder)
    return _compare_sentence_transformers(encoder, folder)


def _checkpoint(encoder: Encoder, folder: Path) -> None:
    save_weights(encoder.state_dict(), folder)


def _huggingface(encoder: Encoder, folder: Path) -> Agreement:
    save_weights(encoder.state_dict(), folder)
    return _compare_plain(encoder, folder)


def _onnx(encoder: Encoder, folder: Path) -> Agreement:
    onnx_graph.write(encoder, folder)
    return _compare_onnx(encoder, folder)


def _onnx_int8(encoder: Encoder, folder: Path) -> Agreement:
    onnx_graph.write(encoder, folder)
    onnx_graph.quantise(folder)
    return _compare_onnx(encoder, folder)


_PARTS: dict[str, Callable[[Encoder, Path], Agreement | None]] = {
    "checkpoint": _checkpoint,
    "sentence-transformers": _sentence_transformers,
    "huggingface": _huggingface,
    "onnx": _onnx,
    "onnx-int8": _onnx_int8,
}


def _compare_sentence_transformers(encoder: Encoder, folder: Path) -> Agreement:
    from sentence_transformers import SentenceTransformer

    model, said = SentenceTransformer(str(folder), device="cpu"), encoder.contract

    def passages(given: list[tuple[str, str]]) -> Vectors:
        texts = [said.titled(text, title) for title, text in given]
        return np.asarray(model.encode_document(texts, show_progress_bar=False))

    return agreement.compare(
        encoder,
        _named("sentence-transformers"),
        lambda texts: np.asarray(model.encode_query(texts, show_progress_bar=False)),
        passages,
    )


def _compare_plain(encoder: Encoder, folder: Path) -> Agreement:
    """By transformers' own model and tokenizer, as they read the folder; the little that follows is done here."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()

    def run(ids: np.ndarray, mask: np.ndarray) -> Vectors:
        given = torch.from_numpy(mask)
        with torch.no_grad():
            hidden = model(input_ids=torch.from_numpy(ids), attention_mask=given).last_hidden_state  # (B, S, D)
            pooled = pooling.pool_padded(hidden, given, encoder.contract.pooling)
            return np.asarray(pooling.finish(pooled, encoder.projection, encoder.contract))

    return _compare_padded(encoder, folder, _named("transformers"), run)


def _compare_onnx(encoder: Encoder, folder: Path) -> Agreement:
    return _compare_padded(encoder, folder, _named("onnxruntime"), onnx_graph.runner(folder))


def _compare_padded(
    encoder: Encoder, folder: Path, by: str, run: Callable[[np.ndarray, np.ndarray], Vectors]
) -> Agreement:
    from transformers import AutoTokenizer

    said, tokenizer = encoder.contract, AutoTokenizer.from_pretrained(folder)

    def encode(texts: list[str], length: int) -> Vectors:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="np")
        return run(batch["input_ids"].astype(np.int64), batch["attention_mask"].astype(np.int64))

    return agreement.compare(
        encoder,
        by,
        lambda texts: encode([said.query_text(text) for text in texts], said.query_max_length),
        lambda given: encode([said.passage_text(text, title) for title, text in given], said.passage_max_length),
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The libraries tell of their own steps by print, bars, warnings and log; an error is still an error."""
    disabled, bars = logging.root.manager.disable, transformers_logging.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        if bars:
            transformers_logging.enable_progress_bar()


def _named(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


def _state_length(folder: Path, said: Contract) -> None:
    """The longest text that the contract allows, where transformers looks for it."""
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model_max_length"] = max(said.query_max_length, said.passage_max_length)
    _json(path, content)


def _json(path: Path, content: Any) -> None:
    artifact.write_text(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")
