"""The learning rate as a pure function of the step: nothing to save, nothing to resume."""

from __future__ import annotations

from dataclasses import dataclass

from .. import settings


@dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """AdamW and its schedule: linear warm-up, then linear decay."""

    lr: float = 5e-5
    """peak learning rate"""
    warmup: int = 20_000
    """steps from 0 to the peak"""
    final: float = 0.0
    """share of the peak left at the last step"""
    beta1: float = 0.9
    """decay of the first moment"""
    beta2: float = 0.98
    """decay of the second moment"""
    eps: float = 1e-6
    """added to the root of the second moment"""
    weight_decay: float = 0.01
    """decoupled weight decay, on every parameter as in the paper's code"""
    clip: float = 1.0
    """largest norm of the gradient; 0 leaves it as it is"""

    def __post_init__(self) -> None:
        settings.in_range("optim.lr", self.lr, 0, 10, low_open=True)
        settings.in_range("optim.warmup", self.warmup, 0, 1e9)
        settings.in_range("optim.final", self.final, 0, 1)
        settings.in_range("optim.beta1", self.beta1, 0, 1, high_open=True)
        settings.in_range("optim.beta2", self.beta2, 0, 1, high_open=True)
        settings.in_range("optim.eps", self.eps, 0, 1, low_open=True)
        settings.in_range("optim.weight_decay", self.weight_decay, 0, 10)
        settings.in_range("optim.clip", self.clip, 0, 1e6)


def learning_rate(optim: OptimSettings, step: int, steps: int) -> float:
    """The rate used at `step` (0-based) of `steps`: the first is already above 0, the last is the final share."""
    warmup = min(optim.warmup, steps)
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    remaining = (steps - 1 - step) / max(1, steps - warmup)
    return optim.lr * (optim.final + (1 - optim.final) * remaining)
