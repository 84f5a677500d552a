"""`mcontriever adopt` and `mcontriever inspect` on what others wrote: their checkpoints told, and made ours.

Adopting is also what converts: a pickled `.bin`, or a `checkpoint.pth` of the published Contriever code, is written
once as safetensors with a contract, and neither is opened again.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import artifact
from ..errors import UsageError
from ..settings import in_range, one_of
from . import reference
from .checkpoint import load, look, save
from .contract import Rules


@dataclass(frozen=True, kw_only=True)
class AdoptSettings:
    """Write a checkpoint of others anew, with a contract that says how it must be used."""

    checkpoint: str
    """folder of Hugging Face's or sentence-transformers' layout, the name of a model on the hub, or a checkpoint.pth of
    the published Contriever code"""
    out: str
    """folder to write"""
    pooling: str = ""
    """mean or cls; needed where neither its files nor our registry say it"""
    similarity: str = ""
    """dot or cosine; needed where neither its files nor our registry say it"""
    query_prefix: str = ""
    """put before every query"""
    passage_prefix: str = ""
    """put before every passage"""
    query_max_length: int = 0
    """tokens of a query, special tokens included; 0: what its files allow"""
    passage_max_length: int = 0
    """tokens of a passage, special tokens included; 0: what its files allow"""
    tokenizer: str = ""
    """for a checkpoint.pth, folder or hub name of the model it began as; empty: the one its options name"""
    overwrite: bool = False
    """replace OUT if it is there"""

    def __post_init__(self) -> None:
        for name, allowed in (("pooling", ("mean", "cls")), ("similarity", ("dot", "cosine"))):
            if getattr(self, name):
                one_of(name, getattr(self, name), allowed)
        for name in ("query_max_length", "passage_max_length"):
            in_range(name, getattr(self, name), 0, 1_000_000)


def adopt(settings: AdoptSettings) -> Path:
    """Load by the rules given, and save as one of ours, which needs none any more."""
    artifact.refuse_overlap(settings.out, [settings.checkpoint, settings.tokenizer])
    given: Any = {name: getattr(settings, name) for name in Rules.__annotations__ if getattr(settings, name, None)}
    meta: dict[str, Any] = {"adopted_from": settings.checkpoint}
    if reference.is_reference(Path(settings.checkpoint)):
        found = reference.read(Path(settings.checkpoint))
        encoder = reference.convert(found, settings.tokenizer, given)
        meta |= {"layout": found.layout, "steps": found.step}
    else:
        if settings.tokenizer:
            raise UsageError("--tokenizer is for a checkpoint.pth; this checkpoint has its own")
        encoder = load(settings.checkpoint, device="cpu", **given)
    save(encoder, settings.out, meta=meta, overwrite=settings.overwrite)
    sys.stdout.write(f"{settings.out}: written\n{encoder.contract.in_words()}\n")
    return Path(settings.out)


def describe(name: str) -> str:
    """What another's checkpoint is and how it must be used, for a person to read."""
    if reference.is_reference(Path(name)):
        words = reference.read(Path(name)).in_words()
        return f"{name}: a checkpoint of training, not of a model; adopt it to use it\n{words}"
    contract, said_by = look(name)
    return f"{name}: a checkpoint without a contract of ours; how to use it is said by {said_by}\n{contract.in_words()}"
