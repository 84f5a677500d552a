"""Where an encoder runs, asked for by name, because torch answers a wrong name with a traceback."""

from __future__ import annotations

import torch

from ..errors import UsageError


def resolve_device(device: torch.device | str | None = None) -> torch.device:
    """The device of that name; without one a GPU where there is one, else the CPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = ["cpu", *["cuda"] * bool(count), *(f"cuda:{number}" for number in range(count))]
    here += ["mps"] * torch.backends.mps.is_available()
    if not device:
        return torch.device("cuda" if count else "cpu")
    if str(device) not in here:
        raise UsageError(f"device {str(device)!r}: there is none of that name here; there are: {', '.join(here)}")
    return torch.device(device)
