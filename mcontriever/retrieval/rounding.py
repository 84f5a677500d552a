"""Vectors in fewer bytes on disk: fp32, fp16, bf16, or int8 with one scale a vector; they are float32 again when read.

How far a stored vector lies from the one that was computed is measured while it is written, so that nobody has to take
a type's word for it. Letters: N vectors, D dimensions.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Stored = Literal["fp32", "fp16", "bf16", "int8"]

# NumPy has no bf16: its bits are kept as whole numbers.
TYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for name, code in zip(("fp32", "fp16", "bf16", "int8"), ("<f4", "<f2", "<u2", "i1"), strict=True)
}


def rounded(rows: NDArray[np.float32], stored: str) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """(N, D) in the type that `stored` names and, for int8, the scales (N,). Too large for fp16 becomes infinite."""
    if stored == "int8":
        scales = np.abs(rows).max(axis=1, initial=0) / np.float32(127)
        divisors = np.where(scales > 0, scales, np.float32(1))
        return np.rint(rows / divisors[:, None]).astype(np.int8), scales.astype("<f4")
    if stored == "bf16":
        bits = np.ascontiguousarray(rows, dtype=np.float32).view(np.uint32)
        even = (bits >> 16) & 1  # of two equally near the even one, as processors round
        return ((bits + 0x7FFF + even) >> 16).astype("<u2"), None
    with np.errstate(over="ignore"):
        return rows.astype(TYPES[stored]), None


def restored(rows: NDArray[Any], stored: str, scales: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """(N, D) float32 of what `rounded` gave."""
    if stored == "int8":
        assert scales is not None
        return rows.astype(np.float32) * scales[:, None]
    if stored == "bf16":
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(rows, dtype=np.float32)


def relative_errors(rows: NDArray[np.float32], kept: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N,) lengths of what the rounding changed, as shares of the vectors' lengths."""
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    lost = np.linalg.norm(rows.astype(np.float64) - kept, axis=1)
    return np.asarray(lost / np.where(lengths > 0, lengths, 1))
