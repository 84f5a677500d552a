"""Loss scaling for fp16, the same for every engine: a gradient below 6e-8 is 0 in fp16, so losses are made larger.

The scale halves when a gradient overflows, and that step changes no weight; it doubles after many steps without. It
moves in powers of two, so that scaling rounds nothing. The learning rate's schedule counts a skipped step like any
other, the optimiser's bias correction does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .. import ranks
from ..errors import ArtifactError


class LossScale:
    """What the loss is multiplied by, and what has happened so far."""

    FIRST, PATIENCE = 2.0**16, 2000

    def __init__(self) -> None:
        self.value, self.skipped = self.FIRST, 0
        self._calm = 0  # steps since the last overflow or growth

    def observe(self, norm: float) -> float:
        """Take note of how a step's gradient came out, and say what is to be told of its norm.

        0 stands for a skipped step. A loss that is not enlarged any more overflows for another reason, which must be
        seen: its norm is told as it is.
        """
        if math.isfinite(norm):
            self._calm += 1
            if self._calm == self.PATIENCE:
                self.value, self._calm = self.value * 2, 0
            return norm
        self._calm = 0
        self.skipped += 1
        if self.value <= 1:
            return norm
        ranks.say(f"the gradient overflowed fp16 at loss scale {self.value:g}: step skipped, {self.skipped} so far")
        self.value /= 2
        return 0.0

    def state(self) -> dict[str, Tensor]:
        """All of it, as tensors."""
        told = {"value": self.value, "skipped": self.skipped, "calm": self._calm}
        return {name: torch.tensor(float(value), dtype=torch.float64) for name, value in told.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        if not state:
            raise ArtifactError("the train state holds no loss scale: it was made in another precision")
        self.value = float(state["value"])
        self.skipped, self._calm = int(state["skipped"]), int(state["calm"])
