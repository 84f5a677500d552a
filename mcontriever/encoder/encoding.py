"""Texts of any number to vectors: tokenised ahead, a window at a time, while the model computes; back in order.

Inside a window texts go through the model sorted by length, in batches of about as many tokens each, without padding.
So memory holds three windows however many texts there are, and neither the tokenizer nor a copy between host and GPU is
waited for. Letters: N texts, D dimensions.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..corpus.tokenizer import Tokenizer
from ..errors import DataError
from ..pairs import Packed, pack
from ..pairs.prefetch import prefetch
from ..progress import bar
from ..settings import in_range
from .contract import positions
from .texts import as_passage, as_query, refuse_string

if TYPE_CHECKING:
    from .contract import Contract

Item = TypeVar("Item")
Vectors = NDArray[np.float32]
Passage = str | tuple[str, str]

BATCH_TOKENS = {"cpu": 4096, "cuda": 32_768}
"""Tokens of a forward pass by kind of device, others as the CPU: enough to keep it busy, and little of its memory."""


class Encodes:
    """The part of an encoder that takes texts; what the model itself must have for it stands first."""

    config: Any
    contract: Contract
    tokenizer: Tokenizer
    truncated: int = 0
    """How many texts were longer than the contract allows, and cut, since this encoder was made."""

    if TYPE_CHECKING:

        @property
        def device(self) -> torch.device: ...  # noqa: D102
        def __call__(self, packed: Packed) -> Tensor: ...  # noqa: D102
        def _inference(self) -> contextlib.AbstractContextManager[None]: ...

    @overload
    def encode_queries(
        self,
        texts: Iterable[str],
        *,
        batch_tokens: int | None = ...,
        as_numpy: Literal[True] = ...,
        progress: bool = ...,
    ) -> Vectors: ...
    @overload
    def encode_queries(
        self, texts: Iterable[str], *, batch_tokens: int | None = ..., as_numpy: Literal[False], progress: bool = ...
    ) -> Tensor: ...
    def encode_queries(
        self,
        texts: Iterable[str],
        *,
        batch_tokens: int | None = None,
        as_numpy: bool = True,
        progress: bool = False,
    ) -> Vectors | Tensor:
        """Queries to float32 vectors (N, D) in their order, as an array or a tensor on the CPU.

        `texts` is a list or anything that gives texts one by one. A forward pass takes about `batch_tokens` tokens, by
        default what suits the device. `progress` shows a bar on standard error. What is too long is cut as the contract
        says and counted in `truncated`; what is empty or no text raises `DataError` and says which it is, for a list
        before anything is computed.

            vectors = encoder.encode_queries(["Nani aligundua penisilini?"])
        """
        refuse_string(texts)

        def prepared(numbered: tuple[int, object]) -> str:
            return self.contract.query_text(as_query(numbered[1], f"query {numbered[0]}"))

        found = self._all(texts, prepared, self.contract.query_max_length, batch_tokens, "queries" if progress else "")
        return found if as_numpy else torch.from_numpy(found)

    @overload
    def encode_passages(
        self,
        passages: Iterable[Passage],
        *,
        batch_tokens: int | None = ...,
        as_numpy: Literal[True] = ...,
        progress: bool = ...,
    ) -> Vectors: ...
    @overload
    def encode_passages(
        self,
        passages: Iterable[Passage],
        *,
        batch_tokens: int | None = ...,
        as_numpy: Literal[False],
        progress: bool = ...,
    ) -> Tensor: ...
    def encode_passages(
        self,
        passages: Iterable[Passage],
        *,
        batch_tokens: int | None = None,
        as_numpy: bool = True,
        progress: bool = False,
    ) -> Vectors | Tensor:
        """Passages, texts or (title, text) pairs, to (N, D) in their order; all else as `encode_queries`.

        vectors = encoder.encode_passages([("Kahawa", "Kahawa ni kinywaji."), "A text without a title."])
        """
        refuse_string(passages)

        def prepared(numbered: tuple[int, object]) -> str:
            title, text = as_passage(numbered[1], f"passage {numbered[0]}")
            return self.contract.passage_text(text, title)

        limit = self.contract.passage_max_length
        found = self._all(passages, prepared, limit, batch_tokens, "passages" if progress else "")
        return found if as_numpy else torch.from_numpy(found)

    def stream(
        self,
        items: Iterable[Item],
        *,
        text: Callable[[Item], str],
        max_length: int,
        batch_tokens: int | None = None,
        window: int | None = None,
        advance: Callable[[int], object] = lambda count: None,
    ) -> Iterator[tuple[list[Item], Vectors]]:
        """Any number of things with their vectors, `window` of them at a time, in their order.

        `text` makes of a thing the text that the tokenizer must see (`contract.passage_text`, `contract.query_text`);
        it is called in another thread. Where it raises `DataError`, or gives what is empty or no text, all things
        before that one still come, then the error.
        `max_length` counts special tokens. `advance` is called with the number of texts done, a batch at a time.
        """
        budget = BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cpu"]) if batch_tokens is None else batch_tokens
        in_range("batch_tokens", budget, 1, 1_000_000_000)
        size = max(256, budget // 8) if window is None else window
        in_range("window", size, 1, 1_000_000_000)
        in_range("max_length", max_length, 3, positions(self.config))
        prepare = functools.partial(_prepare, self.tokenizer, text, max_length, budget, self.device, itertools.count())
        under_way: _UnderWay[Item] | None = None
        with contextlib.closing(_ahead(prepare, items, size)) as windows:
            for prepared in windows:
                self.truncated += prepared.truncated
                coming = self._compute(prepared, advance) if prepared.items else None
                # A GPU computes this window while the vectors of the one before are taken from it and used.
                if under_way is not None:
                    yield under_way.result()
                under_way = coming
                if under_way is not None and (under_way.copied is None or prepared.failure is not None):
                    yield under_way.result()
                    under_way = None
                if prepared.failure is not None:
                    raise prepared.failure
        if under_way is not None:
            yield under_way.result()

    def _all(
        self,
        texts: Iterable[Any],
        prepared: Callable[[tuple[int, object]], str],
        max_length: int,
        batch_tokens: int | None,
        unit: str,
    ) -> Vectors:
        count = None
        if isinstance(texts, Sequence):
            count = len(texts)
            for numbered in enumerate(texts):
                prepared(numbered)  # so that a bad one is told before the work, not after an hour of it
        given: dict[str, Any] = {"text": prepared, "max_length": max_length, "batch_tokens": batch_tokens}
        with bar("Encoding", count, unit, shown=bool(unit)) as running:
            parts = [rows for _, rows in self.stream(enumerate(texts), advance=running.advance, **given)]
        return np.concatenate(parts) if parts else np.empty((0, self.contract.dimension), dtype=np.float32)

    def _compute(self, window: _Window[Item], advance: Callable[[int], object]) -> _UnderWay[Item]:
        with self._inference():
            parts = []
            for rows, packed in window.batches:
                parts.append(self(packed.to(self.device)))
                advance(len(rows))
            order = torch.tensor([row for rows, _ in window.batches for row in rows])
            back = order.argsort()
            vectors = torch.cat(parts)[back.to(self.device, non_blocking=True)]  # (N, D)
            if vectors.device.type != "cuda":
                return _UnderWay(window.items, vectors.cpu(), None)
            with torch.cuda.device(vectors.device):  # the current one is the first GPU, unless somebody said otherwise
                host = torch.empty(vectors.shape, pin_memory=True).copy_(vectors, non_blocking=True)
                copied = torch.cuda.Event()
                copied.record()
            return _UnderWay(window.items, host, copied)


@dataclass(frozen=True)
class _Window(Generic[Item]):
    """Things ready for the model: which of them are in a batch, and its tokens."""

    items: list[Item]
    batches: list[tuple[list[int], Packed]]
    truncated: int
    failure: DataError | None  # what was wrong with the thing after these


@dataclass(frozen=True)
class _UnderWay(Generic[Item]):
    """Things whose vectors lie in `host`, once `copied` says so."""

    items: list[Item]
    host: Tensor
    copied: Any  # torch.cuda.Event

    def result(self) -> tuple[list[Item], Vectors]:
        if self.copied is None:
            return self.items, self.host.numpy()
        self.copied.synchronize()
        return self.items, self.host.numpy().copy()  # pinned memory is scarce: none of it is given away


def _ahead(
    prepare: Callable[[list[Item]], _Window[Item]], items: Iterable[Item], size: int
) -> Generator[_Window[Item], None, None]:
    """Windows, each prepared while the one before is computed; a lone one is not worth a thread."""
    source = iter(items)
    first = list(itertools.islice(source, size))
    if len(first) < size:
        if first:
            yield prepare(first)
        return
    following = iter(lambda: list(itertools.islice(source, size)), [])
    with contextlib.closing(prefetch(prepare, itertools.chain([first], following))) as windows:
        for _, window in windows:
            yield window


def _prepare(
    tokenizer: Tokenizer,
    text: Callable[[Item], str],
    max_length: int,
    budget: int,
    device: torch.device,
    numbers: Iterator[int],
    items: list[Item],
) -> _Window[Item]:
    texts, failure = [], None
    for item in items:
        try:
            texts.append(as_query(text(item), f"text {next(numbers)}"))
        except DataError as error:
            failure = error
            break
    sequences = tokenizer.encode_beginnings(texts, max_length - 2) if texts else []
    nothing = next((row for row, ids in enumerate(sequences) if not len(ids)), None)
    if nothing is not None:  # rare: what cannot be seen was refused before
        failure = DataError(f"{texts[nothing][:40]!r} has no token that the model knows; leave it out")
        texts, sequences = texts[:nothing], sequences[:nothing]
    lengths = [min(len(ids) + 2, max_length) for ids in sequences]
    # Longest first: what does not fit into memory fails at once, not at the end.
    order = sorted(range(len(texts)), key=lambda row: -lengths[row])
    batches = []
    for rows in batches_of(order, lengths, budget):
        packed = pack([sequences[row] for row in rows], tokenizer.bos, tokenizer.eos, max_length)
        batches.append((rows, _pinned(packed, device) if device.type == "cuda" else packed))
    truncated = sum(len(ids) + 2 > max_length for ids in sequences)
    return _Window(items[: len(texts)], batches, truncated, failure)


def batches_of(order: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Cut `order` where the next sequence would pass the budget; one longer than the budget goes alone."""
    batch: list[int] = []
    total = 0
    for row in order:
        if batch and total + lengths[row] > batch_tokens:
            yield batch
            batch, total = [], 0
        batch.append(row)
        total += lengths[row]
    if batch:
        yield batch


def _pinned(packed: Packed, device: torch.device) -> Packed:
    """In memory from which a GPU copies by itself, while the host goes on."""
    with torch.cuda.device(device):  # a thread starts out with the first GPU, which may not be ours
        return Packed(packed.ids.pin_memory(), packed.lengths.pin_memory())
