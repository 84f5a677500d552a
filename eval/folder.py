"""Evaluate on a folder of files: `python eval/folder.py --data FOLDER --checkpoint NAME=PATH --out DIR`.

The protocol: every query of a split's qrels is asked over all passages of one language; BM25 and each encoder give
their best k passages; MRR and Recall are means over the queries of the qrels. Rows: BM25, the encoder with random
weights (what the architecture and tokenizer give without any training), then the checkpoints in the order given.
"""

from __future__ import annotations

import functools
import itertools
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcontriever.artifact import write_text
from mcontriever.errors import UsageError, run_command
from mcontriever.evaluation import EvaluationSet, Measure, Results, Task, Value, evaluate, mean, parse_pairs, write_run
from mcontriever.progress import track
from mcontriever.settings import parse

if TYPE_CHECKING:
    import numpy as np

    from mcontriever.encoder import Encoder

_CUTS = ("10", "100")
Run = dict[str, dict[str, float]]
Ranker = Callable[[Iterable[Task], int], Iterator[Run]]  # tasks over the same passages, depth -> a run a task


@dataclass(frozen=True, kw_only=True)
class FolderSettings:
    """Evaluate BM25, a random encoder and checkpoints on a folder of queries, passages and qrels."""

    data: str
    """folder with corpus.<lang>.jsonl[.gz], queries.<lang>.jsonl[.gz] and qrels/<split>.<lang>.tsv"""
    out: str
    """where results.json, table.md and the runs are written"""
    checkpoint: tuple[str, ...] = ()
    """checkpoints as NAME=PATH, separated by commas"""
    random: str = ""
    """checkpoint whose architecture and tokenizer are also evaluated with fresh random weights"""
    bm25: bool = True
    """whether BM25 is evaluated"""
    pairs: tuple[str, ...] = ()
    """tasks such as ar-en (Arabic questions, English passages); by default each alone, then each over English"""
    split: str = "test"
    """which qrels"""
    k: tuple[str, ...] = ()
    """cuts of Recall; MRR is cut at the first of them; by default 10,100, so far as the passages suffice"""
    seed: int = 0
    """of the random encoder"""
    device: str = ""
    """cpu, cuda, cuda:1 ...; by default a GPU where there is one"""
    batch_tokens: int = 0
    """tokens that go through an encoder at a time; 0: what suits the device"""


def main(argv: list[str]) -> dict[str, Any]:
    """Evaluate, write, print the table, and return what `results.json` holds."""
    from mcontriever.encoder import resolve_device

    settings = parse(FolderSettings, argv, prog="eval/folder.py")
    asked = [Measure.parse(f"{name}@{k}") for name, k in _measures(settings.k or _CUTS)]
    resolve_device(settings.device)
    data = EvaluationSet.open(settings.data)
    pairs = parse_pairs(settings.pairs) or data.pairs(settings.split)
    if not pairs:
        raise UsageError(f"{settings.data}: no language of split {settings.split} has queries; name the tasks, --pairs")
    # tasks over the same passages together, so that these are embedded once
    tasks = sorted((data.task(*pair, settings.split) for pair in pairs), key=lambda task: task.passage_language)
    systems = _systems(settings)
    measures = _measurable(asked, tasks, given=bool(settings.k))
    depth = max(measure.k for measure in measures)
    results = Results({"data": settings.data, "split": settings.split, "seed": settings.seed})
    for system, make_ranker in systems:
        ranker = make_ranker()
        scored = {}
        for _, group in itertools.groupby(tasks, key=lambda task: task.passage_language):
            same = list(group)
            for task, run in zip(same, ranker(same, depth), strict=True):
                scored[task.name] = evaluate(run, task.qrels, measures)
                write_run(
                    Path(settings.out) / "runs" / f"{_file_name(system)}.{task.name}.trec", run, _file_name(system)
                )
        by_name = {task.name: task for task in tasks}
        for name in (f"{query}-{passage}" for query, passage in pairs):
            for measure in measures:
                values, task = scored[name][measure], by_name[name]
                results.add(Value(system, name, str(measure), mean(values), len(values), len(task.passages)))
    results.save(Path(settings.out) / "results.json")
    write_text(Path(settings.out) / "table.md", results.markdown())
    sys.stdout.write(results.terminal(shutil.get_terminal_size((120, 24)).columns))
    return results.as_dict()


def _measures(cuts: Sequence[str]) -> list[tuple[str, str]]:
    return [("MRR", cuts[0]), *(("Recall", k) for k in dict.fromkeys(cuts))]


def _measurable(asked: list[Measure], tasks: Sequence[Task], *, given: bool) -> list[Measure]:
    """The measures whose cut the smallest corpus has passages for: with fewer, every passage is found, and Recall is 1.

    A cut that somebody `given` is refused; one that is only a default is left out, and that is said.
    """
    smallest = min(tasks, key=lambda task: len(task.passages))
    beyond = [measure for measure in asked if measure.k > len(smallest.passages)]
    if not beyond:
        return asked
    size = f"there are {len(smallest.passages)} passages in {smallest.passage_language}"
    left = [measure for measure in asked if measure not in beyond]
    if given or not left:
        raise UsageError(f"{beyond[0]} cannot be measured: {size}; give smaller cuts, such as --k 1")
    sys.stderr.write(f"left out: {', '.join(map(str, beyond))}, for {size}; --k gives other cuts\n")
    return left


def _systems(settings: FolderSettings) -> list[tuple[str, Callable[[], Ranker]]]:
    """Names and how to make their rankers. All are checked before the first works; they are made one at a time, for
    two large encoders need not fit into memory together.
    """
    from mcontriever.encoder import check

    named = [_named(word) for word in settings.checkpoint]
    taken = ["BM25"] * settings.bm25 + ["random encoder"] * bool(settings.random) + [name for name, _ in named]
    for name in taken:
        if [_file_name(other) for other in taken].count(_file_name(name)) > 1:
            raise UsageError(f"two rows are called {name!r}; name checkpoints as NAME=PATH, each differently")
    if not taken:
        raise UsageError("nothing to evaluate; give --checkpoint NAME=PATH, --random PATH or --bm25 true")
    for path in dict.fromkeys([settings.random] * bool(settings.random) + [path for _, path in named]):
        check(path)

    def dense(path: str, *, fresh: bool = False) -> Ranker:
        encoder = _load(settings, path)
        return _rank_dense(_randomised(encoder, settings.seed) if fresh else encoder, settings.batch_tokens or None)

    systems: list[tuple[str, Callable[[], Ranker]]] = [("BM25", lambda: _rank_bm25)] * settings.bm25
    if settings.random:
        systems.append(("random encoder", functools.partial(dense, settings.random, fresh=True)))
    return systems + [(name, functools.partial(dense, path)) for name, path in named]


def _rank_bm25(tasks: Iterable[Task], depth: int) -> Iterator[Run]:
    from mcontriever.retrieval import LexicalIndex

    tasks = list(tasks)
    index, passages = LexicalIndex.build(tasks[0].passages), tasks[0].passages
    for task in track(tasks, f"BM25 over {tasks[0].passage_language}", "tasks", len(tasks)):
        scores, rows = index.search([query.text for query in task.queries], depth)
        yield {
            query.id: {passages[row].id: float(score) for score, row in zip(*best, strict=True)}
            for query, *best in zip(task.queries, scores, rows, strict=True)
        }


def _rank_dense(encoder: Encoder, batch_tokens: int | None) -> Ranker:
    from mcontriever.retrieval import Searcher

    @functools.cache  # the same questions are asked of several languages' passages
    def embedded(texts: tuple[str, ...]) -> np.ndarray:
        return encoder.encode_queries(texts, batch_tokens=batch_tokens)

    def rank(tasks: Iterable[Task], depth: int) -> Iterator[Run]:
        tasks = list(tasks)
        searcher = Searcher.from_passages(encoder, tasks[0].passages, batch_tokens=batch_tokens)
        for task in tasks:
            hits = searcher.search_vectors(embedded(tuple(query.text for query in task.queries)), depth)
            yield {
                query.id: {hit.id: hit.score for hit in best} for query, best in zip(task.queries, hits, strict=True)
            }

    return rank


def _load(settings: FolderSettings, path: str) -> Encoder:
    from mcontriever.encoder import load

    return load(path, device=settings.device or None)


def _randomised(encoder: Encoder, seed: int) -> Encoder:
    """An encoder of the same configuration, contract and tokenizer with fresh weights."""
    import torch

    from mcontriever.encoder import Encoder

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Encoder(encoder.config, encoder.contract, encoder.tokenizer).to(encoder.device).eval()


def _named(word: str) -> tuple[str, str]:
    name, equals, path = word.partition("=")
    return (name, path) if equals else (Path(word).name, word)


def _file_name(system: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in system)


if __name__ == "__main__":
    sys.exit(run_command(main))
