"""`mcontriever prepare`: a corpus of text becomes token shards, once, with a report of what went in and what did not.

The corpus is cut into pieces; each is cleaned and tokenized into an artifact of its own in a folder beside the output,
by any number of processes or machines; then each language's pieces are joined, without duplicates. What is done is
known by a hash of all that decides it: a killed run goes on where it was, and the same input gives the same bytes
whoever did which part.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import workers
from ..artifact import Draft, open_artifact, refuse_other, refuse_overlap, write_text, writing
from ..errors import ArtifactError, DataError
from ..progress import duration
from .articles import number_articles
from .cleaning import Cleaner
from .encode import PieceTask, Treatment, encode_piece
from .job import Job, working_in
from .merge import LanguageTask, merge_language
from .prepare_settings import PrepareSettings
from .report import BAD_LINES, REPORT, LanguageReport, Tally, in_words, languages_of, told
from .sample import SampleTask, count_characters, even_shares, take_sample
from .shards import KIND
from .sources import find_text
from .tokenizer import Tokenizer

__all__ = ["PrepareSettings", "prepare"]

_TOKENIZER = "prepared tokenizer"
# Settings that cannot change a byte, and those whose content counts and not their name.
_APART = ("corpus", "out", "dataset", "split", "tokenizer", "bad_lines", "workers", "ray", "overwrite")


def prepare(settings: PrepareSettings) -> Path:
    """Write the shards and return their path; an output made from the same input before is kept as it is."""
    out = Path(settings.out)
    work = out.resolve().with_name(f"{out.resolve().name}.pieces")
    for place in (out, work):
        refuse_overlap(place, [settings.corpus, settings.dataset, settings.tokenizer])
    refuse_other(out, KIND)
    given = Tokenizer.load(settings.tokenizer) if settings.tokenizer else None
    with working_in(work):
        job = Job(settings, find_text(settings, work), work)
        made_from = _fingerprint(job, given)
        if out.exists() and not settings.overwrite:
            _check_same(out, made_from)
            job.keep_only([], "fetched")
            _say(f"{out} was made from the same input before: kept")
        else:
            _make(job, made_from, given)
    return out


def _make(job: Job, made_from: str, given: Tokenizer | None) -> None:
    settings = job.settings
    folder, tokenizer = _tokenizer(job, given)
    tasks = job.pieces(_treatment(job, str(folder), tokenizer.fingerprint))
    job.keep_only((task.out for task in tasks), "piece")
    tally = Tally(settings.bad_lines)
    tally.add(job.text.facts)
    facts = job.run(encode_piece, tasks, "Preparing", "pieces", _name_of, tally.add)
    tally.check()
    reports = languages_of(facts)
    merges = []
    for language in reports:
        pieces = [str(task.out) for task, fact in zip(tasks, facts, strict=True) if language in fact["kept"]]
        if pieces:
            merges.append(
                LanguageTask(
                    language=language,
                    pieces=tuple(pieces),
                    vocab_size=tokenizer.vocab_size,
                    exact=settings.exact_duplicates,
                    near=settings.near_duplicates,
                    folder=str(job.work),
                )
            )
        else:
            _say(f"{language}: no document of at least {settings.min_tokens} tokens: the language is left out")
    if not merges:
        least = settings.min_tokens
        raise DataError(f"{job.text.where}: no document has {least} tokens or more; give a smaller --min_tokens")
    job.keep_only((merge.out for merge in merges), "language")
    joined = job.run(merge_language, merges, "Joining", "languages", lambda merge: merge.language)
    for merge, found in zip(merges, joined, strict=True):
        reports[merge.language].add(found)
    bad = [job.text.bad_lines] if job.text.bad_lines else []
    bad += [task.out / BAD_LINES for task, fact in zip(tasks, facts, strict=True) if fact["bad"]]
    about = told(reports, [job.text.facts, *facts])
    with writing(settings.out, KIND, overwrite=settings.overwrite) as draft:
        draft.meta |= about | {
            "made_from": made_from,
            "languages": [merge.language for merge in merges],
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": tokenizer.fingerprint,
            "articles": _assemble(job.work, merges, bad, draft),
        }
        tokenizer.save(draft.folder / "tokenizer")
        write_text(draft.folder / REPORT, json.dumps(about, ensure_ascii=False, indent=1) + "\n")
    job.finish()
    _tell(job, reports, about["bad_lines"])


def _assemble(work: Path, merges: Sequence[LanguageTask], bad: Sequence[Path], draft: Draft) -> int:
    """Put the joined languages into the output; returns the number of articles."""
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        hashes = {merge.language: merge.out / "articles.npy" for merge in merges}
        articles = number_articles(hashes, draft.folder, Path(scratch))
    for merge in merges:
        for name in ("tokens", "offsets", "titles"):
            if (file := merge.out / f"{name}.npy").exists():
                file.rename(draft.folder / f"{name}.{merge.language}.npy")
    for file in bad:
        with (draft.folder / BAD_LINES).open("ab") as stream, file.open("rb") as source:
            shutil.copyfileobj(source, stream)
    return articles


def _tokenizer(job: Job, given: Tokenizer | None) -> tuple[Path, Tokenizer]:
    """The tokenizer given, or one trained, once; and a copy where workers find it."""
    path = job.work / f"tokenizer-{given.fingerprint if given else _trained_from(job)}"
    job.keep_only([path], "tokenizer")
    folder = path / "tokenizer"
    if workers.finished(path, _TOKENIZER) is None:
        tokenizer = given or _train(job)
        with writing(path, _TOKENIZER) as draft:
            tokenizer.save(draft.folder / "tokenizer")
    else:
        tokenizer = given or Tokenizer.load(folder)
    return folder, tokenizer


def _train(job: Job) -> Tokenizer:
    settings, tasks = job.settings, job.pieces(_treatment(job, "", ""))
    sizes: dict[str, int] = {}
    before = []
    tally = Tally(settings.bad_lines)
    tally.add(job.text.facts)
    counted = job.run(count_characters, tasks, "Checking", "pieces", _name_of, tally.add)
    tally.check()
    for facts in counted:
        before.append(dict(sizes))
        for language, count in facts["characters"].items():
            sizes[language] = sizes.get(language, 0) + count
    if not sizes:
        raise DataError(f"{job.text.where}: there is no document in it")
    wanted = even_shares(sizes, settings.tokenizer_characters)
    samples = [SampleTask(task, passed, sizes, wanted) for task, passed in zip(tasks, before, strict=True)]
    taken = job.run(take_sample, samples, "Reading for the tokenizer", "pieces", lambda sample: _name_of(sample.task))
    texts = [text for piece in taken for text in piece]
    # SentencePiece has all it asked for and says no more until it is done
    _say(f"training a tokenizer of {settings.vocab_size} on {sum(map(len, texts)):,} characters")
    start = time.monotonic()
    tokenizer = Tokenizer.train(texts, settings.vocab_size)
    _say(f"trained the tokenizer in {duration(time.monotonic() - start)}")
    return tokenizer


def _treatment(job: Job, tokenizer: str, fingerprint: str) -> Treatment:
    return Treatment(
        tokenizer=tokenizer,
        fingerprint=fingerprint,
        field=job.text.field,
        language_field=job.text.language_field,
        clean=job.settings.clean,
        min_tokens=job.settings.min_tokens,
        signatures=job.settings.near_duplicates > 0,
    )


def _fingerprint(job: Job, given: Tokenizer | None) -> str:
    """What the output depends on: the text, the tokenizer and the settings, but no path."""
    facts: dict[str, Any] = asdict(job.settings)
    for name in _APART:
        del facts[name]
    if given:
        del facts["vocab_size"], facts["tokenizer_characters"]
        facts["tokenizer"] = given.fingerprint
    languages = [language for language, _ in job.text.files]
    facts["text"] = list(zip(languages, job.text.names, job.contents, strict=True))
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _trained_from(job: Job) -> str:
    """What a trained tokenizer depends on, no more: a killed run may go on with another min_tokens without training."""
    settings, text = job.settings, job.text
    languages = [language for language, _ in text.files]
    shown = [text.field, text.language_field, settings.layout, asdict(settings.clean)]
    facts = [list(zip(languages, job.contents, strict=True)), shown, settings.vocab_size, settings.tokenizer_characters]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _check_same(out: Path, made_from: str) -> None:
    try:
        artifact = open_artifact(out, KIND)
    except ArtifactError as error:
        raise ArtifactError(f"{error}, or give --overwrite to replace it") from error
    if artifact.meta.get("made_from") != made_from:
        raise ArtifactError(f"{out} was made from another input or with other settings; give --overwrite to replace it")


def _tell(job: Job, reports: dict[str, LanguageReport], bad: dict[str, Any]) -> None:
    for line in in_words(reports, bad):
        _say(line)
    if unjudged := Cleaner(job.settings.clean).unjudged(reports):
        _say(f"not looked at by the language check, which does not know them: {', '.join(unjudged)}")


def _name_of(task: PieceTask) -> str:
    piece = task.piece
    return f"{piece.file}, from line {piece.first_line}" if piece.start else str(piece.file)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
