from __future__ import annotations

import importlib
import inspect

import pytest
import torch
from torch import Tensor

from mcontriever.encoder import attention
from mcontriever.encoder.attention import Layout, attend, packed_attention
from mcontriever.pairs import Packed

HEADS, WIDTH, SCALE = 3, 4, 0.3  # not the usual 1/sqrt(WIDTH), which is what a kernel falls back to


def naive(query: Tensor, key: Tensor, value: Tensor, lengths: list[int]) -> Tensor:
    """Softmax attention spelt out, a sequence and a head at a time: (1, H, T, E) to (1, T, H, E)."""
    result = torch.zeros(query.shape[2], HEADS, WIDTH, dtype=query.dtype)
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        for head in range(HEADS):
            scores = query[0, head, rows] @ key[0, head, rows].T * SCALE
            result[rows, head] = torch.softmax(scores, -1) @ value[0, head, rows]
        start += length
    return result[None]


def layout_of(lengths: list[int]) -> Layout:
    return Layout.of(Packed(torch.zeros(sum(lengths), dtype=torch.long), torch.tensor(lengths)))


def call(query: Tensor, key: Tensor, value: Tensor, lengths: list[int]) -> Tensor:
    layout = layout_of(lengths)
    return packed_attention(torch.nn.Identity(), query, key, value, None, layout=layout, scaling=SCALE)[0]


def inputs(tokens: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, tokens, WIDTH, dtype=dtype).requires_grad_() for _ in range(3))
    return q, k, v


LENGTHS = [[5], [1], [7, 7, 7], [1, 30, 2, 8, 9, 16, 17, 8, 1], list(range(1, 20))]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_every_sequence_sees_itself_alone(lengths: list[int]) -> None:
    tensors = inputs(sum(lengths), torch.float32)
    torch.testing.assert_close(call(*tensors, lengths), naive(*tensors, lengths), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_gradients_are_those_of_the_naive_attention(lengths: list[int]) -> None:
    tensors = inputs(sum(lengths), torch.float32)
    weights = torch.randn(1, sum(lengths), HEADS, WIDTH)
    ours = torch.autograd.grad((call(*tensors, lengths) * weights).sum(), tensors)
    theirs = torch.autograd.grad((naive(*tensors, lengths) * weights).sum(), tensors)
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-4)


def test_half_precision_stays_half_precision_and_is_computed_in_full_on_cpu() -> None:
    lengths = [4, 9, 11]
    tensors = inputs(sum(lengths), torch.float32)
    halves = tuple(tensor.detach().bfloat16() for tensor in tensors)
    with torch.autocast("cpu", torch.bfloat16):
        result = call(*halves, lengths)
    assert result.dtype == torch.bfloat16
    expected = naive(*(tensor.float() for tensor in halves), lengths).bfloat16()
    torch.testing.assert_close(result, expected, atol=0, rtol=2**-7)  # the last bit at most: only the result is rounded


def test_layout_says_where_sequences_begin_and_where_their_tokens_go_when_padded() -> None:
    layout = layout_of([1, 4, 2])
    assert layout.edges == (0, 1, 5, 7)
    assert layout.boundaries.tolist() == [0, 1, 5, 7]
    assert layout.boundaries.dtype == torch.int32
    assert layout.longest == 4
    rows, mask = layout.padding
    assert rows.tolist() == [0, 4, 5, 6, 7, 8, 9]
    assert mask.tolist() == [[True, False, False, False], [True] * 4, [True, True, False, False]]


def test_layout_waits_for_no_device() -> None:
    packed = Packed(torch.arange(7), torch.tensor([1, 4, 2])).to("meta")  # where numbers cannot be asked for
    layout = Layout.of(packed)
    assert (layout.edges, layout.longest) == ((0, 1, 5, 7), 4)
    assert (layout.boundaries.device.type, layout.boundaries.shape) == ("meta", (4,))


@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_padded_way_without_dropout_is_the_same(lengths: list[int]) -> None:
    qkv = torch.stack([tensor[0].transpose(0, 1) for tensor in inputs(sum(lengths), torch.float32)], dim=1).detach()
    layout = layout_of(lengths)
    ours, padded = qkv.clone().requires_grad_(), qkv.clone().requires_grad_()
    first, second = attend(ours, layout, scaling=SCALE), attention._padded(padded, layout, SCALE, 0.0)
    torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-5)
    weights = torch.randn_like(first)
    for result in (first, second):
        (result * weights).sum().backward()
    torch.testing.assert_close(ours.grad, padded.grad, atol=1e-5, rtol=1e-4)


def test_attention_dropout_drops_single_weights_and_leaves_the_mean() -> None:
    # Equal scores and values that name their token: without dropout every token gets each one's share, 1/4.
    tokens = 4
    qkv = torch.zeros(tokens, 3, 1, tokens)
    qkv[:, 2, 0] = torch.eye(tokens)
    layout = layout_of([tokens])
    torch.manual_seed(0)
    draws = torch.stack([attend(qkv, layout, dropout=0.5)[:, 0] for _ in range(2000)])
    assert {round(value, 4) for value in draws.flatten().tolist()} == {0.0, 0.5}
    torch.testing.assert_close(draws.mean(0), torch.full((tokens, tokens), 0.25), atol=0.03, rtol=0)


def test_torchs_kernel_is_taken_where_it_runs_and_called_as_its_signature_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 0)
    for capability, dtype, width, taken in [
        ((9, 0), torch.bfloat16, 64, True),
        ((8, 0), torch.float16, 80, True),
        ((7, 5), torch.float16, 64, False),
        ((9, 0), torch.float32, 64, False),
        ((9, 0), torch.bfloat16, 20, False),
        ((9, 0), torch.bfloat16, 264, False),
    ]:
        attention._varlen.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, answer=capability: answer)
        assert (attention._varlen(cuda, dtype, width) is not None) == taken
    attention._varlen.cache_clear()
    assert attention._varlen(torch.device("cpu"), torch.bfloat16, 64) is None
    kernel = importlib.import_module(attention._VARLEN).varlen_attn
    calls = []
    monkeypatch.setattr(
        attention, "_varlen", lambda *_: lambda *given, **named: calls.append((given, named)) or given[2]
    )
    qkv, layout = torch.randn(7, 3, HEADS, WIDTH), layout_of([5, 2])
    # torch names "meta" what is no CPU and has no numbers: enough to see the call
    result = attend(qkv.to("meta"), layout, scaling=SCALE)
    assert result.shape == (7, HEADS, WIDTH)
    ((given, named),) = calls
    bound = inspect.signature(kernel).bind(*given, **named).arguments
    assert list(bound) == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k", "scale"]
    assert bound["cu_seq_q"].tolist() == bound["cu_seq_k"].tolist() == [0, 5, 7]
    assert (bound["max_q"], bound["max_k"], bound["scale"]) == (5, 5, SCALE)


def test_a_call_without_the_layout_fails() -> None:
    with pytest.raises(TypeError, match="layout"):
        packed_attention(torch.nn.Identity(), *inputs(3), None)  # type: ignore[call-arg]
