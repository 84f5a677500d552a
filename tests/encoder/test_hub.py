from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file

from mcontriever.encoder import CheckpointError, checkpoint, load, registry
from mcontriever.encoder.contract import Rules


class Asked(NamedTuple):
    """One call for a folder of the hub."""

    name: str
    revision: str | None
    patterns: list[str]


@pytest.fixture
def asked(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """What is asked of a hub that holds one folder under every name."""
    calls: list[Asked] = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        calls.append(Asked(name, revision, allow_patterns))
        return str(foreign)

    monkeypatch.setattr(checkpoint, "snapshot_download", download)
    return calls


def test_hub_names_are_fetched_and_the_registry_knows_their_rules(asked: list[Asked]) -> None:
    contract = load("castorini/mdpr-tied-pft-msmarco", passage_max_length=60).contract
    assert [each[:2] for each in asked] == [("castorini/mdpr-tied-pft-msmarco", None)]
    assert (contract.pooling, contract.similarity, contract.passage_max_length) == ("cls", "dot", 60)


def test_only_tensors_are_fetched_when_there_are_safetensors(foreign: Path, asked: list[Asked]) -> None:
    load("facebook/contriever", query_max_length=60, passage_max_length=60)
    assert asked
    assert not any("*pytorch_model*.bin" in each.patterns for each in asked)
    torch.save(load_file(foreign / "model.safetensors"), foreign / "pytorch_model.bin")
    (foreign / "model.safetensors").unlink()
    load("facebook/contriever", query_max_length=60, passage_max_length=60)
    assert "*pytorch_model*.bin" in asked[-1].patterns


def test_a_name_of_the_registry_is_taken_at_the_commit_its_rules_were_checked_at(
    asked: list[Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    lengths: Rules = {"query_max_length": 60, "passage_max_length": 60}
    name, commit = "intfloat/multilingual-e5-small", registry.KNOWN["intfloat/multilingual-e5-small"].revision
    contracts = [load(f"{name}{ending}", **lengths).contract for ending in ("", "@main", f"@{'0' * 40}")]
    assert [each[:2] for each in asked] == [(name, commit), (name, "main"), (name, "0" * 40)]
    assert [contract.query_prefix for contract in contracts] == ["query: "] * 3
    said = capsys.readouterr().err
    assert said == f"{name}: taken at commit {commit[:12]}, which its rules of use were checked at\n"
    load("somebody/else@v1", pooling="mean", similarity="dot")
    assert asked[-1][:2] == ("somebody/else", "v1")


def test_the_registry_pins_only_whole_hashes() -> None:
    pins = [known.revision for known in registry.KNOWN.values() if known.revision]
    assert len(pins) == len(set(pins)) > 5
    assert all(re.fullmatch("[0-9a-f]{40}", pin) for pin in pins)


def test_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        raise LocalEntryNotFoundError("cannot find an appropriate cached snapshot\nand a second line")

    monkeypatch.setattr(checkpoint, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"^facebook/mcontriever: no such folder, and the hub") as error:
        load("facebook/mcontriever")
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="no such folder; expected"):
        load("/nowhere/at/all")
