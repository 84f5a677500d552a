from __future__ import annotations

import pytest
import torch

from mcontriever.encoder import load, resolve_device
from mcontriever.errors import UsageError


@pytest.mark.parametrize("name", ["banana", "cuda:7", "cuda", "meta", "cpu:x"])
def test_a_device_that_is_not_there_is_one_line_before_anything_is_read(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: name == "cuda:7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match=rf"^device '{name}': .* there are: cpu") as error:
        load("/nowhere/at/all", device=name)
    assert ("cuda, cuda:0" in str(error.value)) == (name == "cuda:7")


def test_devices_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device() == resolve_device("") == resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device() == torch.device("cuda")
    assert resolve_device("cuda:1") == resolve_device(torch.device("cuda", 1)) == torch.device("cuda:1")
