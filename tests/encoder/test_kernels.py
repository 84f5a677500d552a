from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcontriever.encoder import kernels
from mcontriever.encoder.kernels import add_norm, keep_mask, linear


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape).to(dtype).requires_grad_()


def gradients(result: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(9))
    return list(torch.autograd.grad((result.float() * weights).sum(), inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_is_torchs(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    inputs = [numbers(7, 6, dtype=dtype), numbers(5, 6, dtype=dtype), numbers(5, dtype=dtype)]
    ours, theirs = linear(*inputs), F.linear(*inputs)
    torch.testing.assert_close(ours, theirs)
    for mine, expected in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(mine, expected)


def test_linear_in_autocast_is_torchs_in_autocast() -> None:
    torch.manual_seed(0)
    inputs = [numbers(40, 64), numbers(32, 64), numbers(32)]
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = linear(*inputs), F.linear(*inputs)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs)
    for mine, expected in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, expected, atol=0.05, rtol=2**-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_add_norm_without_dropout_is_torchs(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = nn.LayerNorm(6)
    norm.weight.data.normal_()
    inputs = [numbers(7, 6, dtype=dtype), numbers(7, 6), *norm.parameters()]
    ours = add_norm(inputs[0], inputs[1], norm, 0.0)
    theirs = norm(inputs[0] + inputs[1])
    torch.testing.assert_close(ours, theirs)
    for mine, expected in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(mine, expected)


def test_add_norm_drops_what_its_mask_says(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    norm, keep = nn.LayerNorm(6), torch.rand(7, 6) > 0.25
    inputs = [numbers(7, 6), numbers(7, 6), *norm.parameters()]
    monkeypatch.setattr(kernels, "keep_mask", lambda like, dropout: keep)
    ours = add_norm(inputs[0], inputs[1], norm, 0.25)
    theirs = norm(inputs[0] * keep / 0.75 + inputs[1])
    torch.testing.assert_close(ours, theirs)
    for mine, expected in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_a_mask_keeps_its_share_everywhere_and_follows_the_seed(dropout: float) -> None:
    like = torch.empty(401, 1003)
    torch.manual_seed(1)
    first = keep_mask(like, dropout)
    second = keep_mask(like, dropout)
    torch.manual_seed(1)
    assert torch.equal(first, keep_mask(like, dropout))
    assert not torch.equal(first, second)
    share, spread = 1 - dropout, (dropout * (1 - dropout)) ** 0.5
    for mask in (first, second, first[:, ::4], first[:, 3::4]):  # four numbers come from one draw of 64 bits
        assert abs(mask.float().mean() - share) < 5 * spread / mask.numel() ** 0.5
    together = (first.float() - share).mul(second.float() - share).mean()
    assert abs(together) < 5 * spread**2 / first.numel() ** 0.5


def test_neighbouring_numbers_of_a_mask_are_independent() -> None:
    torch.manual_seed(2)
    mask = keep_mask(torch.empty(1_000_000), 0.3).float() - 0.7
    for distance in (1, 2, 3, 4):
        assert abs((mask[:-distance] * mask[distance:]).mean()) < 5 * 0.21 / 1000


GROWTH = """
import torch
from mcontriever.encoder.kernels import linear
torch.set_num_threads(1)
weight, bias = torch.randn(64, 64), torch.randn(64)

def kilobytes():  # not getrusage's, which begins with those of the process that started this one
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

for step, rows in enumerate(range(100, 700)):
    with torch.autocast("cpu", torch.bfloat16):
        linear(torch.randn(rows, 64), weight, bias)
    if step == 100:
        before = kilobytes()
print((kilobytes() - before) / 1024)
"""


@pytest.mark.slow
def test_batches_of_ever_new_sizes_do_not_fill_the_memory() -> None:
    """Each size leaves a compiled product behind; a week of training has hundreds of thousands of sizes."""
    clean = {name: value for name, value in os.environ.items() if "CACHE_CAPACITY" not in name}

    def megabytes(environment: dict[str, str]) -> float:
        command = [sys.executable, "-c", GROWTH]
        return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    kept = megabytes(clean | {"LRU_CACHE_CAPACITY": "1024", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024"})
    assert 0 < megabytes(clean) < kept / 2
