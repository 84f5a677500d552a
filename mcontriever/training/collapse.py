"""Notices an encoder that has come to give every text the same vector: the loss then is a number like any other.

What is judged are the lines of metrics.jsonl, those of earlier starts of the run among them: a run that is resumed
says what one that was never stopped would have said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_STILL = 3  # lines in a row without a gradient


class Collapse:
    """Compares the spread of queries and keys with the largest so far; a `share` of 0 notices nothing."""

    def __init__(self, share: float, before: Iterable[Mapping[str, Any]] = ()) -> None:
        self._share = share
        self._largest: dict[str, float] = {}
        self._still = 0
        for line in before:
            self.of(line)

    def of(self, line: Mapping[str, Any]) -> str:
        """What is wrong as of this line, in words; empty if nothing is."""
        if not self._share:
            return ""
        found = []
        for name in ("query_std", "key_std"):
            value = line.get(name)
            if value is None:
                continue
            most = self._largest[name] = max(value, self._largest.get(name, 0.0))
            if value < self._share * most or not most:
                found.append(f"{name} is {value:.6f}, it was {most:.6f}")
        if (norm := line.get("gradient_norm")) is not None:
            self._still = 0 if norm else self._still + 1
        if self._still >= _STILL:
            found.append(f"gradient_norm has been 0 for {self._still} lines")
        return "; ".join(found)
