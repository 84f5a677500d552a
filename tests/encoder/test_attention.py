from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mcontriever.encoder import attention
from mcontriever.encoder.attention import Layout, packed_attention

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


def call(query: Tensor, key: Tensor, value: Tensor, lengths: list[int]) -> Tensor:
    layout = Layout.of(torch.tensor(lengths))
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


def test_layout_pads_no_sequence_by_a_step_or_more() -> None:
    lengths = torch.tensor([1, 30, 2, 8, 9, 16, 17, 8, 1, 31])
    layout = Layout.of(lengths)
    assert layout.boundaries.tolist() == [0, 1, 31, 33, 41, 50, 66, 83, 91, 92, 123]
    assert layout.longest == 31
    assert sum(group.count for group in layout.groups) == len(lengths)
    padded = len(layout.gather) - int(lengths.sum())
    assert 0 < padded < attention._STEP * len(lengths)
    assert layout.gather[layout.scatter].tolist() == list(range(int(lengths.sum())))
    assert {group.mask is None for group in layout.groups} == {True, False}


def test_equal_lengths_need_no_mask() -> None:
    (group,) = Layout.of(torch.full((6,), 12)).groups
    assert (group.count, group.width, group.mask) == (6, 12, None)


def test_a_call_without_the_layout_fails() -> None:
    with pytest.raises(TypeError, match="layout"):
        packed_attention(torch.nn.Identity(), *inputs(3), None)  # type: ignore[call-arg]
