from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from mcontriever.encoder import Encoder
from mcontriever.encoder.encoding import BATCH_TOKENS
from mcontriever.errors import DataError, SettingsError


def streamed(encoder: Encoder, items: Any, **given: Any) -> Iterator[tuple[list[str], np.ndarray]]:
    return encoder.stream(items, text=encoder.contract.query_text, max_length=64, **given)


def test_generators_go_in_and_the_order_stays(encoder: Encoder, texts: list[str]) -> None:
    many = [f"{text} {number}" for number in range(20) for text in texts]
    expected = encoder.encode_queries(many)
    np.testing.assert_array_equal(encoder.encode_queries(text for text in many), expected)
    np.testing.assert_array_equal(encoder.encode_queries(dict.fromkeys(many)), expected)
    np.testing.assert_array_equal(encoder.encode_queries(many, as_numpy=False).numpy(), expected)
    assert encoder.encode_passages(iter([])).shape == (0, 32)


@pytest.mark.parametrize("window", [1, 7, 120, 500])
def test_windows_change_nothing_but_how_many_come_at_a_time(encoder: Encoder, texts: list[str], window: int) -> None:
    many = [f"{text} {number}" for number in range(20) for text in texts]
    found = list(streamed(encoder, iter(many), window=window, batch_tokens=100))
    assert [len(items) for items, _ in found[:-1]] == [window] * (len(found) - 1)
    assert [item for items, _ in found for item in items] == many
    vectors = np.concatenate([rows for _, rows in found])
    np.testing.assert_allclose(vectors, encoder.encode_queries(many), atol=1e-5)


def test_little_is_read_ahead(encoder: Encoder) -> None:
    taken: list[int] = []

    def endless() -> Iterator[str]:
        while True:
            taken.append(1)
            yield f"coffee {len(taken)}"

    stream = streamed(encoder, endless(), window=10)
    for number in range(1, 4):
        assert len(next(stream)[0]) == 10
        assert len(taken) <= 10 * (number + 2)
    stream.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())


def test_texts_are_tokenised_in_another_thread_while_one_computes(encoder: Encoder) -> None:
    where: set[str] = set()

    def text(item: str) -> str:
        where.add(threading.current_thread().name)
        return item

    assert len(list(encoder.stream(["a b"] * 30, text=text, max_length=16, window=10))) == 3
    assert threading.current_thread().name not in where
    where.clear()
    list(encoder.stream(["a b"] * 3, text=text, max_length=16, window=10))
    assert where == {threading.current_thread().name}, "a single window needs no thread"


def test_what_came_before_an_error_is_not_lost(encoder: Encoder) -> None:
    def text(item: str) -> str:
        if item == "bad":
            raise DataError("file:17 is bad")
        return item

    stream = encoder.stream([*["coffee"] * 25, "bad", "tea"], text=text, max_length=16, window=10)
    found = [next(stream) for _ in range(3)]
    with pytest.raises(DataError, match="file:17"):
        next(stream)
    assert [len(items) for items, _ in found] == [10, 10, 5]
    assert all(len(items) == len(rows) for items, rows in found)
    with pytest.raises(DataError, match="file:17"):
        next(encoder.stream(["bad"], text=text, max_length=16))


@pytest.mark.parametrize(
    ("bad", "message"),
    [("", "text 12 is empty"), ("a \ud83d", "text 12 holds half of a surrogate pair"), (None, "text 12 is None")],
)
def test_a_stream_refuses_what_is_no_text_by_its_number(encoder: Encoder, bad: Any, message: str) -> None:
    stream = encoder.stream([*["coffee"] * 12, bad, "tea"], text=lambda item: item, max_length=16, window=5)
    assert [len(next(stream)[0]) for _ in range(3)] == [5, 5, 2]
    with pytest.raises(DataError, match=message):
        next(stream)


def test_the_consumer_is_left_with_its_own_gradient_mode(encoder: Encoder) -> None:
    encoder.train()
    for _ in streamed(encoder, ["coffee"] * 5, window=2):
        assert torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")
        assert encoder.training


def test_a_list_is_looked_through_before_anything_is_computed(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "forward", lambda packed: pytest.fail("computed"))
    with pytest.raises(DataError, match="query 600 is None"):
        encoder.encode_queries([*["fine"] * 600, None])  # type: ignore[list-item]


def test_texts_that_are_cut_are_counted(encoder: Encoder) -> None:
    assert encoder.truncated == 0
    long = "coffee and tea " * 200
    room = encoder.contract.query_max_length
    vectors = encoder.encode_queries(["short", long, long * 300])
    assert encoder.truncated == 2
    np.testing.assert_allclose(vectors[1], vectors[2], atol=1e-6)
    ids = encoder.tokenizer.encode([long])[0][: room - 2]
    whole = encoder.tokenizer.decode(ids)
    if len(encoder.tokenizer.encode([whole])[0]) == room - 2:  # exactly full is not cut
        encoder.encode_queries([whole])
        assert encoder.truncated == 2
    encoder.encode_passages([("title", long)])
    assert encoder.truncated == 3


@pytest.mark.parametrize(
    "text", ["a\x00b", "\x01\x02a\x1f", "\u202eabc\u202c", "a\ufeff\u200d", "\U000e0041a", "\ue000", "😀"]
)
def test_control_characters_among_visible_ones_are_the_tokenizers_business(encoder: Encoder, text: str) -> None:
    vectors = encoder.encode_queries([text, "neighbour"])
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(vectors[:1], encoder.encode_queries([text]), atol=1e-6)


@pytest.mark.parametrize(
    "text", ["\x00\x01\x1f", "\u200b\u200b", "\u202e\ufeff", "\u3000\xa0\u2028", "\x00" * 1_000_000]
)
def test_a_text_of_nothing_visible_is_empty(encoder: Encoder, text: str) -> None:
    with pytest.raises(DataError, match=r"query 1 is empty"):
        encoder.encode_queries(["fine", text])
    with pytest.raises(DataError, match=r"passage 0 is empty"):
        encoder.encode_passages([(text, text)])
    assert np.isfinite(encoder.encode_passages([(text, "fine")])).all()


def test_an_error_never_shows_a_megabyte(encoder: Encoder) -> None:
    with pytest.raises(DataError) as caught:
        encoder.encode_passages([{"text": "x" * 1_000_000}])  # type: ignore[list-item]
    assert len(str(caught.value)) < 200


def test_progress_is_shown_on_request_only(encoder: Encoder, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("mcontriever.progress.QUIET_SECONDS", 0.0)
    encoder.encode_passages(["coffee"] * 5)
    assert capsys.readouterr().err == ""
    encoder.encode_passages(["coffee"] * 5, progress=True)
    assert "Encoding  5/5 passages" in capsys.readouterr().err


def test_batches_are_as_large_as_suits_the_device(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda packed: (seen.append(len(packed.ids)), forward(packed))[1])
    monkeypatch.setitem(BATCH_TOKENS, "cpu", 50)
    encoder.encode_queries(["coffee"] * 40)
    assert max(seen) <= 50
    assert len(seen) > 1
    for wrong in ({"batch_tokens": 0}, {"window": 0}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            list(streamed(encoder, ["a"], **wrong))


def test_a_gpu_is_given_the_next_window_before_the_last_is_waited_for(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the event that a GPU's copy ends with."""
    told: list[str] = []
    compute = encoder._compute

    class Event:
        def __init__(self, name: str) -> None:
            self.name = name

        def synchronize(self) -> None:
            told.append(f"waited for {self.name}")

    def later(window: Any, advance: Any) -> Any:
        told.append(f"gave {window.items[0]}")
        return dataclasses.replace(compute(window, advance), copied=Event(window.items[0]))

    monkeypatch.setattr(encoder, "_compute", later)
    found = list(streamed(encoder, ["a", "b", "c", "d", "e"], window=2))
    assert [items for items, _ in found] == [["a", "b"], ["c", "d"], ["e"]]
    assert told == ["gave a", "gave c", "waited for a", "gave e", "waited for c", "waited for e"]
    vectors = np.concatenate([rows for _, rows in found])
    monkeypatch.undo()
    np.testing.assert_allclose(vectors, encoder.encode_queries(["a", "b", "c", "d", "e"]), atol=1e-6)


@pytest.mark.parametrize("text", ["</s>", "<s> <pad>", "\ufffd\ufffd", "[SEP] [CLS]"])
def test_a_text_of_no_token_is_empty(encoder: Encoder, text: str) -> None:
    with pytest.raises(DataError, match="query 1 is empty"):
        encoder.encode_queries(["fine", text])


def test_a_text_that_the_tokenizer_drops_ends_a_stream_after_those_before_it(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = encoder.tokenizer.encode_beginnings

    def dropping(texts: list[str], count: int) -> list[Any]:
        return [ids[:0] if text == "\ue000" else ids for text, ids in zip(texts, real(texts, count), strict=True)]

    monkeypatch.setattr(encoder.tokenizer, "encode_beginnings", dropping)
    stream = encoder.stream(["one", "two", "\ue000", "four"], text=str, max_length=16)
    items, vectors = next(stream)
    assert (items, len(vectors)) == (["one", "two"], 2)
    with pytest.raises(DataError, match=r"'\\ue000' has no token that the model knows"):
        next(stream)


def test_a_stream_is_not_longer_than_the_model(encoder: Encoder) -> None:
    with pytest.raises(SettingsError, match="max_length"):
        list(encoder.stream(["a"], text=str, max_length=1000))
