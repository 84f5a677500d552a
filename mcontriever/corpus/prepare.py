"""`mcontriever prepare`: a corpus of text becomes token shards, once, with a report of what went in and what did not.

The input is read twice (three times when a tokenizer is trained): the first pass checks every line before anything is
written and counts what progress and sampling need. Memory holds one chunk of documents, the tokenizer's bounded sample
and, to find exact duplicates, a short hash of each document of one language; everything else streams.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..artifact import open_artifact, refuse_other, refuse_overlap, writing
from ..errors import ArtifactError, DataError, SettingsError
from ..progress import Bar, bar, duration
from ..settings import in_range
from .formats import Document
from .shards import KIND, NO_ARTICLE, LanguageWriter
from .sources import Files, Hub, Source, is_language_code
from .tokenizer import Tokenizer

_CHUNK_CHARACTERS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """Turn text into token shards."""

    corpus: str = ""
    """folder of corpus.<lang>.jsonl, <lang>.jsonl or <lang>.txt files (also .gz), or one such file"""
    out: str
    """folder to write"""
    dataset: str = ""
    """instead of CORPUS: a Hugging Face dataset to stream, owner/name, owner/name:configuration or a folder of one"""
    split: str = ""
    """which part of the dataset; empty: train"""
    language: str = ""
    """language code of the dataset's text, such as sw; files state theirs by name"""
    tokenizer: str = ""
    """tokenizer folder, .model or vocab.txt; empty: train one on this corpus"""
    vocab_size: int = 8000
    """size of the tokenizer trained, special tokens included"""
    tokenizer_characters: int = 10_000_000
    """at most this much text trains it, spread evenly over the languages"""
    field: str = "text"
    """key of the text in .jsonl lines, or the dataset's column"""
    min_tokens: int = 8
    """drop documents of fewer tokens"""
    overwrite: bool = False
    """replace OUT if it holds token shards made from something else"""

    def __post_init__(self) -> None:
        if bool(self.corpus) == bool(self.dataset):
            given = "got both" if self.corpus else "got neither (one word alone is OUT)"
            raise SettingsError(f"give CORPUS, a folder or file of text, or --dataset, a Hugging Face dataset; {given}")
        if self.dataset and not is_language_code(self.language):
            raise SettingsError(f"--dataset needs --language with a code such as sw, got {self.language!r}")
        if self.corpus and (self.language or self.split):
            option = "language" if self.language else "split"
            raise SettingsError(f"--{option} is only for --dataset; the files of CORPUS state their language by name")
        in_range("vocab_size", self.vocab_size, 16, 2**31 - 1)
        in_range("tokenizer_characters", self.tokenizer_characters, 1000, 2**40)
        in_range("min_tokens", self.min_tokens, 1, 2**31 - 1)


@dataclass
class LanguageReport:
    """What happened to one language's text."""

    documents: int = 0
    tokens: int = 0
    words: int = 0
    too_short: int = 0
    duplicates: int = 0


def prepare(settings: PrepareSettings) -> Path:
    """Write the shards and return their path; an output made from the same input before is kept as it is."""
    out = Path(settings.out)
    refuse_overlap(out, [settings.corpus, settings.dataset, settings.tokenizer])
    refuse_other(out, KIND)
    source = _source(settings)
    made_from = _fingerprint(settings, source)
    if out.exists() and not settings.overwrite:
        _check_same(out, made_from)
        _say(f"{out} was made from the same input before: kept")
        return out
    given = Tokenizer.load(settings.tokenizer) if settings.tokenizer else None
    survey = source.survey
    tokenizer = given or _train(settings, source)
    reports: dict[str, LanguageReport] = {}
    with writing(out, KIND, overwrite=settings.overwrite) as draft:
        numbers: dict[str, int] = {}  # article id to article number, over all languages
        with bar("Preparing", sum(survey.documents.values()), "documents") as running:
            for language in survey.documents:
                with LanguageWriter(draft.folder, language, tokenizer.vocab_size) as writer:
                    reports[language] = _encode(
                        settings, source.documents(language), tokenizer, writer, numbers, running
                    )
                if not writer.documents:
                    _say(f"{language}: no document of at least {settings.min_tokens} tokens: the language is left out")
                    for name in ("tokens", "offsets", "articles"):
                        (draft.folder / f"{name}.{language}.npy").unlink()
        kept = [language for language, report in reports.items() if report.documents]
        if not kept:
            least = settings.min_tokens
            raise DataError(f"{source.name}: no document has {least} tokens or more; give a smaller --min_tokens")
        tokenizer.save(draft.folder / "tokenizer")
        draft.meta |= {
            "made_from": made_from,
            "languages": kept,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": tokenizer.fingerprint,
            "articles": len(numbers),
            "report": {language: asdict(report) for language, report in reports.items()},
        }
    _say(_table(reports))
    return out


def _encode(
    settings: PrepareSettings,
    documents: Iterator[Document],
    tokenizer: Tokenizer,
    writer: LanguageWriter,
    numbers: dict[str, int],
    running: Bar,
) -> LanguageReport:
    report = LanguageReport()
    seen: set[bytes] = set()
    for chunk in _chunks(documents):
        fresh: list[Document] = []
        for document in chunk:
            key = hashlib.blake2b(" ".join(document.text.split()).encode(), digest_size=8).digest()
            if key in seen:
                report.duplicates += 1
            else:
                seen.add(key)
                fresh.append(document)
        kept, articles = [], []
        for document, ids in zip(fresh, tokenizer.encode([document.text for document in fresh]), strict=True):
            if len(ids) < settings.min_tokens:
                report.too_short += 1
                continue
            report.words += len(document.text.split())
            kept.append(ids)
            article = document.article
            articles.append(NO_ARTICLE if article is None else numbers.setdefault(article, len(numbers)))
        writer.append(kept, articles)
        running.advance(len(chunk), language=chunk[0].language)
    report.documents, report.tokens = writer.documents, writer.tokens
    return report


def _source(settings: PrepareSettings) -> Source:
    if settings.dataset:
        return Hub(settings.dataset, settings.split or "train", settings.language, settings.field)
    return Files(settings.corpus, settings.field)


def _train(settings: PrepareSettings, source: Source) -> Tokenizer:
    budget = _even_shares(source.survey.characters, settings.tokenizer_characters)
    start = time.monotonic()
    tokenizer = Tokenizer.train(_sample(source, budget, settings.vocab_size), settings.vocab_size)
    _say(f"trained the tokenizer in {duration(time.monotonic() - start)}")
    return tokenizer


def _even_shares(sizes: dict[str, int], total: int) -> dict[str, int]:
    """Share out `total`: the same for all, and what small ones cannot use goes to the others."""
    shares: dict[str, int] = {}
    for done, (name, size) in enumerate(sorted(sizes.items(), key=lambda item: item[1])):
        shares[name] = min(size, (total - sum(shares.values())) // (len(sizes) - done))
    return shares


def _sample(source: Source, budget: dict[str, int], vocab_size: int) -> Iterator[str]:
    """Documents spread evenly over each language's text, cut off at its budget."""
    read, taken = dict.fromkeys(budget, 0), dict.fromkeys(budget, 0)
    with bar("Reading for the tokenizer", sum(source.survey.characters.values()), "characters") as running:
        for document in source.documents():
            language = document.language
            allowed, size = budget[language], source.survey.characters[language]
            if taken[language] * size <= read[language] * allowed and taken[language] < allowed:
                text = document.text[: allowed - taken[language]]
                taken[language] += len(text)
                yield text
            read[language] += len(document.text)
            running.advance(len(document.text))
    # SentencePiece has all it asked for and says no more until it is done
    _say(f"training a tokenizer of {vocab_size} on {sum(taken.values()):,} characters")


def _chunks(documents: Iterator[Document]) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    characters = 0
    for document in documents:
        chunk.append(document)
        characters += len(document.text)
        if characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _fingerprint(settings: PrepareSettings, source: Source) -> str:
    """What the output depends on: the text, the tokenizer and the settings, but no path."""
    facts: dict[str, Any] = asdict(settings)
    for name in ("corpus", "out", "dataset", "split", "language", "field", "tokenizer", "overwrite"):
        del facts[name]
    if settings.tokenizer:
        del facts["vocab_size"], facts["tokenizer_characters"]
        facts["tokenizer"] = Tokenizer.load(settings.tokenizer).fingerprint
    facts["text"] = source.fingerprint()
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _check_same(out: Path, made_from: str) -> None:
    try:
        artifact = open_artifact(out, KIND)
    except ArtifactError as error:
        raise ArtifactError(f"{error}, or give --overwrite to replace it") from error
    if artifact.meta.get("made_from") != made_from:
        raise ArtifactError(f"{out} was made from another input or with other settings; give --overwrite to replace it")


def _table(reports: dict[str, LanguageReport]) -> str:
    lines = [f"{'':8}{'documents':>12}{'tokens':>15}{'tokens/word':>13}{'too short':>11}{'duplicates':>12}"]
    for language, row in reports.items():
        ratio = f"{row.tokens / row.words:.2f}" if row.words else "-"
        dropped = f"{row.too_short:>11,}{row.duplicates:>12,}"
        lines.append(f"{language:8}{row.documents:>12,}{row.tokens:>15,}{ratio:>13}{dropped}")
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
