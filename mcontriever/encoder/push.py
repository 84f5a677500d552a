"""`mcontriever push FOLDER NAME`: a model's folder to the Hugging Face hub, because somebody said so and not before.

Only a folder that verifies goes, only the files its manifest lists with its card, and only with a token of the
environment: one left behind in a login file publishes nothing.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from .. import artifact
from ..errors import ArtifactError, McontrieverError, UsageError
from . import card
from .checkpoint import KIND
from .formats import ONNX

_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
# Of whichever HTTP library the hub's own uses: an unreachable hub raises its errors.
_HTTP = cast("type[Exception]", HfHubHTTPError.__bases__[0])


class HubError(McontrieverError):
    """The hub refused, or could not be reached."""


@dataclass(frozen=True, kw_only=True)
class PushSettings:
    """Upload a folder that `export` wrote, after verifying it, with the token in HF_TOKEN."""

    folder: str
    """what export wrote: a checkpoint, or an ONNX encoder, with its card README.md"""
    name: str
    """where on the hub, as OWNER/MODEL"""
    private: bool = False
    """for the owner's eyes only; one that is public already is refused"""
    revision: str = ""
    """branch to upload to, made if it is not there; by default main"""
    dry_run: bool = False
    """list the files, and send nothing"""

    def __post_init__(self) -> None:
        try:
            validate_repo_id(self.name)
        except HFValidationError as error:
            raise UsageError(f"name {self.name!r} is none the hub takes ({_line(error)}); give OWNER/MODEL") from error
        if self.name.count("/") != 1:
            raise UsageError(f"name must be OWNER/MODEL, got {self.name!r}")


def push(settings: PushSettings) -> None:
    """Verify, then upload, or with `dry_run` say what would be."""
    folder = Path(settings.folder)
    files = _files(folder)
    place = settings.name + (f"@{settings.revision}" if settings.revision else "")
    if settings.dry_run:
        lines = [f"{(folder / name).stat().st_size:>14,}  {name}" for name in files]
        sys.stdout.write("\n".join([f"{place}: would be sent {len(files)} files, in bytes:", *lines]) + "\n")
        return
    token = next((os.environ[name] for name in _TOKENS if os.environ.get(name)), None)
    if token is None:
        raise UsageError("no token of the Hugging Face hub; put one that may write into HF_TOKEN")
    try:
        address = _upload(HfApi(token=token), settings, files)
    except (_HTTP, OSError, ValueError) as error:
        raise HubError(f"{place}: not uploaded ({_line(error)}); check the name, the token and the network") from error
    sys.stdout.write(f"{address}: uploaded, {len(files)} files\n")


def _files(folder: Path) -> list[str]:
    """What is sent: the verified files, the manifest, the card."""
    kind = ONNX if artifact.is_artifact(folder, ONNX) else KIND
    opened = artifact.open_artifact(folder, kind)
    if not (folder / card.FILE).is_file():
        raise ArtifactError(f"{folder}: has no card ({card.FILE}); mcontriever export {folder} OUT writes one")
    return sorted({*opened.files, artifact.MANIFEST, card.FILE})


def _upload(api: HfApi, settings: PushSettings, files: list[str]) -> Any:
    api.create_repo(settings.name, private=settings.private or None, exist_ok=True)
    if settings.private and not api.repo_info(settings.name).private:
        raise UsageError(f"{settings.name} is public already; leave out --private, or change it on the hub first")
    if settings.revision:
        api.create_branch(settings.name, branch=settings.revision, exist_ok=True)
    return api.upload_folder(
        repo_id=settings.name,
        folder_path=settings.folder,
        revision=settings.revision or None,
        allow_patterns=files,
        commit_message="mcontriever push",
    )


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
