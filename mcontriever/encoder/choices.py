"""Which way the encoder computes on a device, in words: for `mcontriever doctor`, which computes nothing by it."""

from __future__ import annotations

import torch

from . import attention, inference, units


def products(device: torch.device, precision: str) -> str:
    """How the matrix products of a layer are computed in this precision, and why."""
    if device.type != "cpu":
        return "torch's own"
    reason, used = units.lacking(precision), inference.usable(precision, device)
    if used != precision:
        return f"none: {reason}, and load takes {used} instead"
    if precision == "int8":
        if reason:
            return f"none: {reason}, and load refuses it"
        return "oneDNN" if units.has_bf16() else "oneDNN, and fp32 between them: this processor has no bf16 units"
    if precision == "fp16":
        return "torch's own: on a CPU fp16 is for models that were saved so, bf16 is faster"
    return f"torch's own: {reason}" if reason else "oneDNN"


def attends(device: torch.device) -> str:
    """How the attention over packed sequences is computed, and why."""
    if device.type == "cpu":
        kernel = "torch's CPU flash kernel, a sequence at a time"
        return kernel if attention.has_flash() else "padded: this torch does not offer its CPU flash kernel"
    if attention._varlen(device, torch.bfloat16, 64) is not None:
        return "torch's varlen kernel in bf16 and fp16; padded in fp32, which it does not know"
    if device.type != "cuda":
        return f"padded: there is no kernel for packed sequences on {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"padded: the kernel for packed sequences needs compute capability 8.0, this GPU has {major}.{minor}"
    return f"padded: torch {torch.__version__} has no kernel for packed sequences; 2.10 and newer have"


def largest_error(device: torch.device) -> float:
    """How far packed attention is from the plain formula here, for two small sequences in full precision."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(12, 3, 2, 8, generator=generator)  # (T, 3, H, E)
    lengths = (5, 7)
    layout = attention.Layout(torch.tensor([0, 5, 12], dtype=torch.int32, device=device), (0, 5, 12), 7)
    found = attention.attend(qkv.to(device), layout).cpu()
    expected = []
    for part in qkv.split(lengths):
        query, key, value = part.transpose(0, 2).unbind(1)  # (H, T, E) each
        weights = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(-1)
        expected.append((weights @ value).transpose(0, 1))
    return float((found - torch.cat(expected)).abs().max())
