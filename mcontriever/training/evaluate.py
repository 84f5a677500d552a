"""Retrieval measured on the way: what the loss cannot tell is whether questions find their passages.

The weights are borrowed from the engine for the time of an evaluation by an encoder of its own, which has none. So
ZeRO's hooks on the trained module see nothing of it, no dropout is drawn, and training goes on bit for bit as if
nobody had looked. Letters: W ranks, N texts, Q queries, P passages, D dimensions.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from .. import ranks
from ..encoder import Encoder
from ..errors import SettingsError, require
from ..evaluation import EvaluationSet, Measure, Task, evaluate, mean, parse_pairs
from ..progress import bar
from .engine import Engine
from .metrics import Metrics
from .settings import EvaluationSettings

T = TypeVar("T")
Beat = Callable[[str], None]  # of a watchdog

_QUERIES_AT_ONCE = 1024  # rows of a block of scores, so that these stay small beside the vectors


class Evaluator:
    """Measures the encoder in training on a test set, every so many steps."""

    def __init__(self, chosen: EvaluationSettings, encoder: Encoder) -> None:
        """Read the test set. `encoder` must not be in an engine yet; nothing of it is kept but its rules."""
        self._chosen, self._tasks, self._measures = chosen, [], []
        if not chosen.data:
            return
        require("ir_measures", "eval", "evaluation.data")
        self._measures = [Measure.parse(word) for word in chosen.measures]
        data = EvaluationSet.open(chosen.data)
        pairs = parse_pairs(chosen.pairs) or data.pairs(chosen.split)
        self._tasks = [_limited(data.task(*pair, chosen.split), chosen) for pair in pairs]
        self._require_measurable()
        self._shell = _without_weights(encoder)

    @property
    def names(self) -> list[str]:
        """Of all the measures that are taken."""
        over = [*(task.name for task in self._tasks), "mean"]
        return [f"{measure} {name}" for name in over for measure in self._measures]

    def maybe(
        self, step: int, engine: Engine, log: Metrics, *, last: bool = False, beat: Beat = lambda doing: None
    ) -> dict[str, float] | None:
        """Measures after `step` steps, by names such as `MRR@10 ar-en` and `MRR@10 mean`, where it is time for them.

        Every rank calls and gets the same; they are written to evaluation.jsonl and wherever else `log` tells. An
        evaluation may take hours, so `beat` hears of every forward pass and of every block of scores.
        """
        due = step % self._chosen.every == 0 if step else self._chosen.first
        if not self._tasks or not (due or last) or step <= log.evaluated_to:
            return None
        began = time.perf_counter()
        alive = functools.partial(beat, f"evaluating after step {step}")
        with borrowed(engine, self._shell) as encoder:
            hook = encoder.register_forward_hook(lambda *_: alive())
            try:
                measured = self._measure(encoder, alive)
            finally:
                hook.remove()
        log.evaluated(step, measured, time.perf_counter() - began)
        return measured

    def _measure(self, encoder: Encoder, alive: Callable[[], None]) -> dict[str, float]:
        budget = self._chosen.batch_tokens
        queries: dict[tuple[str, ...], Tensor] = {}  # embedded once, however many tasks ask or search the same
        passages: dict[str, Tensor] = {}
        measured: dict[str, float] = {}
        with bar("Evaluating", len(self._tasks), "tasks", shown=ranks.is_main()) as running:
            for task in self._tasks:
                alive()
                texts, over = tuple(query.text for query in task.queries), task.passage_language
                if texts not in queries:
                    own = encoder.encode_queries(_of_rank(texts), batch_tokens=budget, as_numpy=False)
                    queries[texts] = _gathered(own, len(texts), encoder.device)
                if over not in passages:
                    titled = [(passage.title, passage.text) for passage in task.passages]
                    own = encoder.encode_passages(_of_rank(titled), batch_tokens=budget, as_numpy=False)
                    passages[over] = _gathered(own, len(titled), encoder.device)
                # all ranks hold all vectors; rank 0 measures and tells, so that every rank decides on the same number
                found = ranks.on_main(functools.partial(self._found, task, queries[texts], passages[over], alive))
                measured |= {f"{measure} {task.name}": value for measure, value in found.items()}
                running.advance()
        for measure in self._measures:
            values = [measured[f"{measure} {task.name}"] for task in self._tasks]
            measured[f"{measure} mean"] = sum(values) / len(values)
        return measured

    def _found(self, task: Task, queries: Tensor, passages: Tensor, alive: Callable[[], None]) -> dict[str, float]:
        """Every measure's mean over the task's queries, by exact search."""
        depth = min(max(measure.k for measure in self._measures), len(task.passages))
        run: dict[str, dict[str, float]] = {}
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            alive()
            some = slice(start, start + _QUERIES_AT_ONCE)
            scores, rows = (queries[some] @ passages.T).topk(depth)  # (Q, P) to (Q, depth)
            for query, best, where in zip(task.queries[some], scores.tolist(), rows.tolist(), strict=True):
                run[query.id] = {task.passages[row].id: score for row, score in zip(where, best, strict=True)}
        values = evaluate(run, task.qrels, self._measures)
        return {str(measure): mean(values[measure]) for measure in self._measures}

    def _require_measurable(self) -> None:
        for task in self._tasks:
            for measure in self._measures:
                if measure.k > len(task.passages):
                    raise SettingsError(
                        f"evaluation.measures: {measure} cannot be measured, for {task.name} searches "
                        f"{len(task.passages)} passages; give smaller cuts"
                    )


@contextlib.contextmanager
def borrowed(engine: Engine, shell: Encoder) -> Iterator[Encoder]:
    """`shell` with the engine's current weights, whole, for the block; they are used where they lie, not copied."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), engine.weights() as weights:
        _set_weights(shell, {name: weight.detach() for name, weight in weights.items()})
        try:
            yield shell
        finally:
            shell.release()
            _set_weights(shell, {name: torch.empty_like(weight, device="meta") for name, weight in weights.items()})


def _of_rank(texts: Sequence[T]) -> Sequence[T]:
    """The texts that this rank embeds: every W-th."""
    return texts[ranks.rank() :: ranks.world_size()]


def _gathered(own: Tensor, count: int, device: torch.device) -> Tensor:
    """All ranks' vectors (N, D) in the order of their texts."""
    rows = -(-count // ranks.world_size())
    padded = nn.functional.pad(own.to(device), (0, 0, 0, rows - len(own)))  # every rank must send as many
    return ranks.in_sample_order(ranks.gather(padded))[:count]


def _without_weights(encoder: Encoder) -> Encoder:
    """A copy for inference whose weights have shapes and no memory; buffers are copied, the tokenizer is shared."""
    empty: dict[int, object] = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False)
        for weight in encoder.parameters()
    }
    return copy.deepcopy(encoder, empty).eval()


def _set_weights(shell: Encoder, weights: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        place, _, last = name.rpartition(".")
        setattr(shell.get_submodule(place), last, nn.Parameter(weight, requires_grad=False))


def _limited(task: Task, chosen: EvaluationSettings) -> Task:
    """The task with as many queries and passages as were asked for; what is relevant to the queries stays."""
    queries = task.queries[: chosen.queries or None]
    qrels = {query.id: task.qrels[query.id] for query in queries}
    passages = task.passages
    if chosen.passages and chosen.passages < len(passages):
        relevant = {passage for judged in qrels.values() for passage, grade in judged.items() if grade > 0}
        room = chosen.passages - sum(passage.id in relevant for passage in passages)
        if room < 0:
            raise SettingsError(
                f"evaluation.passages {chosen.passages}: {chosen.passages - room} are relevant to the queries of "
                f"{task.name} alone; raise it, or lower evaluation.queries"
            )
        others = itertools.islice((passage.id for passage in passages if passage.id not in relevant), room)
        kept = relevant.union(others)
        passages = tuple(passage for passage in passages if passage.id in kept)
    return replace(task, queries=queries, qrels=qrels, passages=passages)
