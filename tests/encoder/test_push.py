"""The hub gets what was verified, from who is allowed to, and nothing before it was asked for."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mcontriever.cli import main
from mcontriever.encoder import Encoder, push
from mcontriever.encoder.card import Card
from mcontriever.encoder.formats import write
from mcontriever.errors import ArtifactError, McontrieverError, UsageError


class Hub:
    """What the hub's library was asked for; `fails` is raised at the upload."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.token, self.public = "", False
        self.fails: Exception | None = None

    def __call__(self, token: str) -> Hub:
        self.token = token
        return self

    def create_repo(self, name: str, **how: Any) -> None:
        self.calls.append(("create_repo", {"name": name, **how}))

    def create_branch(self, name: str, **how: Any) -> None:
        self.calls.append(("create_branch", {"name": name, **how}))

    def repo_info(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(private=not self.public)

    def upload_folder(self, **how: Any) -> str:
        if self.fails:
            raise self.fails
        self.calls.append(("upload_folder", how))
        return f"https://hub/{how['repo_id']}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(push, "HfApi", made)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN", "secret")
    return made


@pytest.fixture
def folder(encoder: Encoder, tmp_path: Path) -> Path:
    out = tmp_path / "out"
    write(encoder, out, format="checkpoint", about=Card(name="out", format="checkpoint"), beside={}, meta={})
    (out / "private-notes.txt").write_text("not for others")
    return out


def test_the_verified_files_and_the_card_are_sent(hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["push", str(folder), "me/model", "--private", "--revision", "v1"])
    assert hub.token == "secret"
    (_, made), (_, branch), (_, sent) = hub.calls
    assert made == {"name": "me/model", "private": True, "exist_ok": True}
    assert branch == {"name": "me/model", "branch": "v1", "exist_ok": True}
    expected = sorted(path.name for path in folder.iterdir() if path.name != "private-notes.txt")
    assert sent["allow_patterns"] == expected
    assert {"README.md", "manifest.json", "model.safetensors"} < set(expected)
    assert (sent["folder_path"], sent["revision"]) == (str(folder), "v1")
    assert capsys.readouterr().out == f"https://hub/me/model: uploaded, {len(expected)} files\n"


def test_a_dry_run_lists_and_sends_nothing(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    main(["push", str(folder), "me/model", "--dry_run"])
    said = capsys.readouterr().out
    assert said.startswith("me/model: would be sent ")
    assert "contract.json" in said
    assert "private-notes" not in said
    assert (hub.calls, hub.token) == ([], "")


def test_what_is_not_whole_or_has_no_card_stays_here(hub: Hub, folder: Path, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no card \(README.md\); mcontriever export"):
        main(["push", str(saved), "me/model"])
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes().replace(b"32", b"64"))
    with pytest.raises(ArtifactError, match="differs from its checksum"):
        main(["push", str(folder), "me/model"])
    with pytest.raises(ArtifactError, match="no such folder"):
        main(["push", str(tmp_path / "nowhere"), "me/model"])
    shutil.rmtree(folder)
    assert hub.calls == []


def test_only_a_token_of_the_environment_counts(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UsageError, match="put one that may write into HF_TOKEN"):
        main(["push", str(folder), "me/model"])
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "older")
    main(["push", str(folder), "me/model"])
    assert hub.token == "older"


@pytest.mark.parametrize("name", ["model", "a/b/c", "me/has space", "me/--"])
def test_a_name_the_hub_would_not_take_is_refused_here(hub: Hub, folder: Path, name: str) -> None:
    with pytest.raises(UsageError, match="OWNER/MODEL"):
        main(["push", str(folder), name])


def test_a_public_place_is_no_private_one(hub: Hub, folder: Path) -> None:
    hub.public = True
    with pytest.raises(UsageError, match="is public already"):
        main(["push", str(folder), "me/model", "--private"])
    assert [name for name, _ in hub.calls] == ["create_repo"]


@pytest.mark.parametrize(
    "error", [push._HTTP("cannot connect\nlong story"), OSError("cannot connect"), ValueError("cannot connect")]
)
def test_a_network_error_is_one_line(hub: Hub, folder: Path, error: Exception) -> None:
    hub.fails = error
    with pytest.raises(McontrieverError, match=r"^me/model: not uploaded \(cannot connect\); check") as caught:
        main(["push", str(folder), "me/model"])
    assert "\n" not in str(caught.value)
