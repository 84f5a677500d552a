"""The model card: what the model is and how it must be used, in words, in code that runs, and in what was measured.

All of it comes from the contract, the recipe and results that are given; what is not known is left out. People may edit
the card afterwards, so the manifest does not cover it.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from typing import Any

from huggingface_hub import ModelCardData

from ..artifact import Draft, write_text
from . import registry
from .agreement import Agreement
from .contract import Contract

FILE = "README.md"
_LIBRARIES = {  # as the hub names them; the task is the one that each library's models are listed under
    "checkpoint": ("mcontriever", "feature-extraction"),
    "sentence-transformers": ("sentence-transformers", "sentence-similarity"),
    "huggingface": ("transformers", "feature-extraction"),
    "onnx": ("onnx", "feature-extraction"),
    "onnx-int8": ("onnx", "feature-extraction"),
}
_QUESTION = "Who discovered penicillin?"
_TITLE, _TEXT = "Penicillin", "Alexander Fleming discovered it in 1928."


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card tells besides the contract; whatever is empty is left out."""

    name: str
    """What code loads: a name on the hub, or a folder's."""
    format: str
    languages: tuple[str, ...] = ()
    license: str = ""
    base_model: str = ""
    recipe: str = ""
    """The text of recipe.toml."""
    results: str = ""
    """Tables of an evaluation, with a sentence on what was measured."""
    agreement: Agreement | None = None


def write(draft: Draft, about: Card, said: Contract) -> None:
    """Write `README.md` into a folder being written."""
    library, task = _LIBRARIES[about.format]
    front = ModelCardData(
        language=list(about.languages) or None,
        license=about.license or None,
        library_name=library,
        pipeline_tag=task,
        base_model=about.base_model or None,
        tags=["mcontriever", "dense-retrieval"],
    )
    title = about.name.rpartition("/")[2]
    sections = [
        f"---\n{front.to_yaml()}\n---\n\n# {title}\n\n{_what(about, said)}",
        f"## How it must be used\n\n{in_words(said)}",
        *(f"## {heading}\n\n```python\n{code}\n```" for heading, code in snippets(about, said).items()),
        _checked(about),
        f"## Results\n\n{about.results.strip()}" if about.results else "",
        _training(about.recipe),
    ]
    write_text(draft.folder / FILE, "\n\n".join(filter(None, sections)) + "\n")
    draft.loose.add(FILE)


def known_base(name: str) -> str:
    """A name on the hub that we know, whole; empty for anything else, a folder of that name perhaps."""
    return registry.full_name(name).partition("@")[0] if registry.find(name) else ""


def in_words(said: Contract) -> str:
    """The rules of use, a line each."""
    joined = f"its title, {_shown(said.title_joiner)} and its text" if said.title_joiner else "its title and its text"
    case = " Everything is lower-cased, prefixes included (as Python's `str.lower` does)." if said.lowercase else ""
    query = _prefixed(said.query_prefix, "its text")
    passage = _prefixed(said.passage_prefix, f"{joined} (its text alone where it has no title)")
    lines = [
        f"A query is encoded as {query}; what is beyond {said.query_max_length} tokens is cut.",
        f"A passage is encoded as {passage}; what is beyond {said.passage_max_length} tokens is cut.",
        f"Tokens are counted with the two special ones.{case}",
        f"The vector is {_made(said)}, {said.dimension} numbers.",
        _compared(said),
    ]
    return "\n".join(f"- {line}" for line in lines)


def snippets(about: Card, said: Contract) -> dict[str, str]:
    """Code for each library that reads the folder, by its heading; each leaves `scores`, queries by passages."""
    ours = f"""\
import mcontriever

encoder = mcontriever.load("{about.name}")
queries = encoder.encode_queries(["{_QUESTION}"])
passages = encoder.encode_passages([("{_TITLE}", "{_TEXT}")])
scores = queries @ passages.T"""
    theirs = f"""\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{about.name}")
queries = model.encode_query(["{_QUESTION}"])
passages = model.encode_document(["{_TITLE}" + {said.title_joiner!r} + "{_TEXT}"])
scores = model.similarity(queries, passages)"""
    query, passage = (said.query_text(_QUESTION), said.passage_text(_TEXT, _TITLE))
    used = f"""\
queries = encode([{query!r}], {said.query_max_length})
passages = encode([{passage!r}], {said.passage_max_length})
scores = queries @ passages.T"""
    pooled = "hidden[:, 0]" if said.pooling == "cls" else "(hidden * mask).sum(1) / mask.sum(1)"
    final = "torch.nn.functional.normalize(vectors, dim=-1)" if said.normalise else "vectors"
    plain = f"""\
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{about.name}")
model = AutoModel.from_pretrained("{about.name}").eval()

def encode(texts, max_length):
    batch = tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    vectors = {pooled}
    return {final}

{used}"""
    graph = f"""\
from pathlib import Path

import onnxruntime
from huggingface_hub import snapshot_download
from transformers import AutoTokenizer

name = "{about.name}"
folder = name if Path(name).is_dir() else snapshot_download(name)
tokenizer = AutoTokenizer.from_pretrained(folder)
session = onnxruntime.InferenceSession(f"{{folder}}/model.onnx")

def encode(texts, max_length):
    batch = tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="np")
    given = {{name: batch[name].astype("int64") for name in ("input_ids", "attention_mask")}}
    return session.run(["vectors"], given)[0]

{used}"""
    with_ours, with_plain = {"With mcontriever": ours}, {"With transformers": plain}
    return {
        "checkpoint": with_ours,
        "sentence-transformers": with_ours | {"With sentence-transformers": theirs},
        "huggingface": with_ours | with_plain,
    }.get(about.format, {"With onnxruntime": graph})


def _what(about: Card, said: Contract) -> str:
    kind = {"onnx": " as an ONNX graph", "onnx-int8": " as an ONNX graph with weights in int8"}.get(about.format, "")
    based = f" It was trained from {about.base_model}." if about.base_model and about.recipe else ""
    return (
        f"A dense retriever{kind}: one encoder ({said.architecture}) turns queries and passages into vectors of "
        f"{said.dimension} numbers, and the passages nearest to a query are its answers.{based}"
    )


def _checked(about: Card) -> str:
    found = about.agreement
    if found is None:
        return ""
    return f"## Checked when written\n\nOn {found.texts} texts, {found.in_words()}."


def _training(recipe: str) -> str:
    if not recipe:
        return ""
    lines = []
    for table, settings in _tables(tomllib.loads(recipe)).items():
        shown = [f"{key} = {_toml(value)}" for key, value in settings.items() if not _is_place(key, value)]
        if shown:
            lines.append("\n".join([f"[{table}]" if table else "", *shown]).strip())
    return "## Training\n\nThe recipe, but for where files lay:\n\n```toml\n" + "\n\n".join(lines) + "\n```"


def _tables(recipe: dict[str, Any]) -> dict[str, dict[str, Any]]:
    plain = {key: value for key, value in recipe.items() if not isinstance(value, dict)}
    return {"": plain} | {key: value for key, value in recipe.items() if isinstance(value, dict)}


def _is_place(key: str, value: object) -> bool:
    """A file or folder of whoever trained the model says nothing to others; a model of the hub does."""
    return key in ("output", "shards", "file", "data") or (
        isinstance(value, str) and "/" in value and not known_base(value)
    )


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'
    return str(value).lower() if isinstance(value, bool) else str(value)


def _prefixed(prefix: str, what: str) -> str:
    return f"{_shown(prefix)}, then {what}" if prefix else what


def _shown(text: str) -> str:
    return "a space" if text == " " else f"`{text!r}`"


def _made(said: Contract) -> str:
    made = "the mean over all tokens" if said.pooling == "mean" else "that of the first token"
    if said.projection:
        made += ", put through a linear map" + (" and tanh" if said.projection == "tanh" else "")
    return f"{made}, {'brought to length one' if said.normalise else 'left at its length'}"


def _compared(said: Contract) -> str:
    if said.similarity == "cosine":
        return "Vectors are compared by cosine, which for vectors of length one is the dot product."
    warning = "" if said.normalise else " Do not bring them to length one: that gives another ranking."
    return f"Vectors are compared by their dot product.{warning}"
