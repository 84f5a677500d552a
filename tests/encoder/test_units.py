"""What a processor and a torch are said to have, for processors and releases that are not here."""

from __future__ import annotations

import platform
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mcontriever.encoder import Encoder, attention, choices, inference, units
from mcontriever.encoder.attention import Layout

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives this process another processor; `older` is a torch that tells of it by single functions."""

    def be(kind: str, *capabilities: str, half: bool = True, older: bool = False) -> None:
        monkeypatch.setattr(platform, "machine", lambda: kind)
        told = SimpleNamespace(get_capabilities=lambda: dict.fromkeys(capabilities, True))
        if older:
            told = SimpleNamespace(**{units._OLDER[name]: lambda: True for name in capabilities})
        monkeypatch.setattr(torch, "cpu", told)
        monkeypatch.setattr(units, "_offers", lambda operator: True)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
        monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(_is_mkldnn_bf16_supported=lambda: half))

    return be


@pytest.mark.parametrize("older", [False, True])
def test_emulated_bf16_is_none(machine: Callable[..., None], older: bool) -> None:
    machine("x86_64", "avx512_vnni", older=older)  # Cascade Lake: torch says that bf16 is supported
    assert not units.has_bf16()
    assert units.has_int8()
    assert inference.usable("bf16", CPU) == "fp32"
    assert "no bf16 units, and load takes fp32" in choices.products(CPU, "bf16")
    assert "fp32 between" in choices.products(CPU, "int8")
    for units_of_bf16 in ("avx512_bf16", "amx_bf16"):
        machine("x86_64", units_of_bf16, older=older)
        assert units.has_bf16()
        assert inference.usable("bf16", CPU) == "bf16"
        assert choices.products(CPU, "bf16") == "oneDNN"


def test_another_kind_of_processor_is_taken_at_torchs_word(machine: Callable[..., None]) -> None:
    machine("aarch64", "bf16")
    assert units.has_bf16()
    assert not units.has_int8()
    machine("aarch64", half=False)
    assert not units.has_bf16()


def test_a_torch_without_an_operator_still_encodes(
    make_encoder: Callable[[], Encoder], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = make_encoder()
    expected = encoder.encode_passages(texts)
    assert encoder._frozen is not None
    encoder.release()
    there = {"_linear_pointwise": torch.ops.mkldnn._linear_pointwise}  # _reorder_linear_weight is missing
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(**there))
    monkeypatch.setattr(attention, "_flash", None)
    assert units.lacking("fp32") == "this torch does not offer oneDNN's fused products"
    assert not inference.can_freeze(encoder.model, "fp32")
    assert "does not offer oneDNN's" in choices.products(CPU, "fp32")
    assert choices.attends(CPU).startswith("padded")
    np.testing.assert_allclose(encoder.encode_passages(texts), expected, atol=1e-5)
    assert encoder._frozen is None


def test_attention_without_the_flash_kernel_is_padded_and_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv = torch.randn(30, 3, 2, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    layout = Layout(torch.tensor([0, 10, 30], dtype=torch.int32), (0, 10, 30), 20)
    results = []
    for kernel in (attention._flash_backward, None):
        monkeypatch.setattr(attention, "_flash_backward", kernel)
        result = attention.attend(qkv, layout)
        results.append((result, attention.attend_each(qkv.detach(), layout), *torch.autograd.grad(result.sum(), qkv)))
    for ours, padded in zip(*results, strict=True):
        torch.testing.assert_close(ours, padded)
