"""Embedded passages on disk: one memory-mapped array, the passages it stands for, and the encoder that made it.

Vectors of two encoders can be compared without any error and without any sense, so everything that holds vectors
names its encoder, and everything that joins two of them compares the names.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifact import Artifact, open_artifact
from ..errors import ArtifactError
from ..progress import track
from .store import PassageStore

if TYPE_CHECKING:
    from ..encoder import Encoder

KIND = "vectors"
VECTORS = "vectors.npy"


def encoder_fingerprint(encoder: Encoder) -> str:
    """A hash of what decides the vectors: contract, tokenizer and weights, wherever the checkpoint lies."""
    digest = hashlib.sha256(json.dumps(asdict(encoder.contract), sort_keys=True, ensure_ascii=False).encode())
    digest.update(encoder.tokenizer.fingerprint.encode())
    weights = sorted(encoder.state_dict().items())
    for name, tensor in track(weights, "Hashing the encoder", "tensors", len(weights)):
        array = np.ascontiguousarray(tensor.detach().float().cpu().numpy())
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def describe_encoder(encoder: Encoder, checkpoint: str) -> dict[str, Any]:
    """What an artifact says of its encoder: the fingerprint decides, the path is a hint for finding it again."""
    local = Path(checkpoint)
    return {
        "fingerprint": encoder_fingerprint(encoder),
        # absolute, or searching would work in one folder and not in the next
        "checkpoint": str(local.resolve()) if local.is_dir() else checkpoint,
        "similarity": encoder.contract.similarity,
        "dimension": encoder.contract.dimension,
    }


def check_encoder(path: Path, made_by: dict[str, Any], encoder: Encoder) -> None:
    """Refuse an encoder that is not the one that made the artifact at `path`."""
    if encoder_fingerprint(encoder) != made_by["fingerprint"]:
        raise ArtifactError(
            f"{path}: its vectors were made by another encoder (then at {made_by['checkpoint']}) than the one given; "
            "search with that one, or embed and index again with this one"
        )


class Vectors:
    """An opened `vectors` artifact: row n of `.vectors` (N, D) is the passage `.passages[n]`."""

    def __init__(self, artifact: Artifact) -> None:
        self.path, self.artifact = artifact.path, artifact
        self.encoder: dict[str, Any] = artifact.meta["encoder"]
        self.passages = PassageStore(artifact)
        self.vectors: np.ndarray = np.load(artifact.file(VECTORS), allow_pickle=False, mmap_mode="r")
        expected = (len(self.passages), self.encoder["dimension"])
        if self.vectors.shape != expected or self.vectors.dtype != np.float32:
            found = f"{self.vectors.dtype} {self.vectors.shape}"
            raise ArtifactError(f"{self.path}: {VECTORS} is {found}, expected float32 {expected}; embed again")

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = True) -> Vectors:
        """Open and verify."""
        return cls(open_artifact(path, KIND, verify=verify))

    def __len__(self) -> int:
        return len(self.passages)
