"""What this processor and this build of torch have for products on a CPU: looked for, never taken for granted.

The operators are torch's private ones, which another release may lack, and torch's own word on bf16 is true of any
AVX-512 processor, where it is emulated. One place, so that what computes and what `mcontriever doctor` says agree.
"""

from __future__ import annotations

import platform

import torch

_FUSED = ("mkldnn._linear_pointwise.default", "mkldnn._linear_pointwise.binary", "mkldnn._reorder_linear_weight")
_INT8 = ("onednn.qlinear_prepack", "onednn.qlinear_pointwise")
# By the names of torch.cpu.get_capabilities, which older releases of torch lack.
_OLDER = {
    "avx512_bf16": "_is_avx512_bf16_supported",
    "amx_bf16": "_is_amx_tile_supported",
    "avx512_vnni": "_is_vnni_supported",
}


def has_bf16() -> bool:
    """Whether this processor multiplies bf16 matrices by itself."""
    if not (_has_onednn() and _offers("mkldnn._is_mkldnn_bf16_supported")):
        return False
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine().lower() in ("x86_64", "amd64"):
        return _can("avx512_bf16") or _can("amx_bf16")
    return True


def has_int8() -> bool:
    """Whether this processor multiplies int8 matrices by itself (VNNI): without it sums of products overflow."""
    return _has_onednn() and _can("avx512_vnni")


def lacking(precision: str) -> str:
    """Why oneDNN's packed products cannot be had here in a precision; empty where they can."""
    if precision not in ("fp32", "bf16", "int8"):
        return f"oneDNN's packed products know no {precision}"
    if not _has_onednn():
        return "this build of torch has no oneDNN"
    if not all(map(_offers, _FUSED)):
        return "this torch does not offer oneDNN's fused products"
    if precision == "bf16" and not has_bf16():
        return "this processor has no bf16 units"
    if precision == "int8" and not has_int8():
        return "this processor has no int8 units (VNNI)"
    if precision == "int8" and not all(map(_offers, _INT8)):
        return "this torch does not offer oneDNN's int8 products"
    return ""


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())


def _can(capability: str) -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get(capability, False))
    return bool(getattr(torch.cpu, _OLDER[capability], bool)())


def _offers(operator: str) -> bool:
    found = torch.ops
    for name in operator.split("."):
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return True
