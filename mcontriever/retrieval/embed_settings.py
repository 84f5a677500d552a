"""What `mcontriever embed` can be told."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ..corpus.files import is_language_code
from ..corpus.passages import BLOCK_LINES
from ..errors import SettingsError
from ..settings import in_range, one_of
from .rounding import TYPES, Stored

PIPED = "-"
"""The corpus that stands for standard input."""


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """Embed the passages of a corpus with a checkpoint."""

    checkpoint: str
    """checkpoint folder, or the name of a model on the Hugging Face hub"""
    corpus: str
    """file of passages (.jsonl, .tsv or .parquet; also .gz, .zst, .xz), a folder of such files, or - for standard
    input"""
    out: str
    """folder to write; what is done lies in OUT.shards until all is, so that a killed run goes on from there"""
    dtype: Stored = "fp32"
    """how vectors are stored: fp32, fp16, bf16, or int8 with a scale for each vector"""
    precision: Literal["fp32", "bf16", "fp16", "int8"] = "fp32"
    """how the encoder computes; bf16 is faster where the hardware knows it; int8, on a CPU, is faster still and not
    exact: how far its vectors are from fp32's is told"""
    language: str = ""
    """language code of the passages, such as sw, where neither lines nor the file's name state it"""
    bad_lines: float = 0.0
    """leave out and report so many lines that hold no passage: a share below 1, or a number; more is an error"""
    shard: str = ""
    """do only part I of N, as I/N from 0/N on: each machine does its own, and the last one done writes OUT"""
    shard_passages: int = BLOCK_LINES
    """passages in a shard: what is lost at most when the run is killed"""
    workers: int = 0
    """processes at work, each on a GPU of its own where there are any; 0: one, or over Ray as many as it has CPUs or,
    with --device cuda, GPUs"""
    ray: str = ""
    """let a Ray cluster do it: auto, host:port or ray://host:port; it must see the same files and OUT;
    a task gets one CPU, and with --device cuda one GPU"""
    batch_tokens: int = 0
    """tokens that go through the encoder at a time; 0: what suits the device"""
    device: str = ""
    """cpu, cuda, cuda:1 ...; by default a GPU where there is one"""
    overwrite: bool = False
    """replace OUT if it holds vectors made from something else"""

    def __post_init__(self) -> None:
        one_of("dtype", self.dtype, TYPES)
        one_of("precision", self.precision, ("fp32", "bf16", "fp16", "int8"))
        if self.language and not is_language_code(self.language):
            raise SettingsError(f"language must be a code such as sw, got {self.language!r}")
        if not self.bad_lines >= 0:
            raise SettingsError(f"bad_lines must be 0 or more, got {self.bad_lines!r}")
        if self.bad_lines >= 1 and not float(self.bad_lines).is_integer():
            raise SettingsError(f"bad_lines must be a share below 1 or a whole number, got {self.bad_lines!r}")
        if self.shard:
            given = re.fullmatch(r"(\d{1,6})/(\d{1,6})", self.shard)
            if not given or int(given[1]) >= int(given[2]):
                raise SettingsError(f"shard must be I/N with I from 0 to N - 1, such as 0/4, got {self.shard!r}")
        in_range("shard_passages", self.shard_passages, 1, 2**24)
        in_range("workers", self.workers, 0, 4096)
        in_range("batch_tokens", self.batch_tokens, 0, 1_000_000_000)
        if self.corpus == PIPED and (self.workers > 1 or self.ray):
            raise SettingsError("standard input can be read by one process only: leave out --workers and --ray")
        if ":" in self.device and (self.workers > 1 or self.ray):
            shared = self.device.partition(":")[0]
            raise SettingsError(
                f"all would be put on {self.device}: give --device {shared}, and each gets one of its own"
            )

    @property
    def part(self) -> tuple[int, int]:
        """Which part of how many this run does."""
        number, _, of = self.shard.partition("/")
        return (int(number), int(of)) if self.shard else (0, 1)
