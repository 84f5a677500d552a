"""What `mcontriever prepare` can be told."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..errors import SettingsError
from ..settings import in_range, one_of
from .cleaning import CleanSettings
from .files import is_language_code
from .readers import Layout


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """Turn text into token shards."""

    corpus: str = ""
    """folder of <lang>.jsonl, .txt or .parquet files, or of folders <lang>, or one file; also .gz, .zst and .xz"""
    out: str
    """folder to write; what is done lies in OUT.pieces until all is, so that a killed run goes on from there"""
    dataset: str = ""
    """instead of CORPUS: a Hugging Face dataset to stream, owner/name, owner/name:configuration or a folder of one"""
    split: str = ""
    """which part of the dataset; empty: train"""
    language: str = ""
    """language code of all the text, such as sw, where no name of a file or folder states it"""
    language_field: str = ""
    """key of the language in .jsonl lines, or the column: for files of several languages"""
    layout: Layout = "cc100"
    """of .txt files: cc100 (a paragraph a line, a blank line ends a document) or lines (a document a line)"""
    field: str = "text"
    """key of the text in .jsonl lines, or the column"""
    tokenizer: str = ""
    """tokenizer folder, .model or vocab.txt; empty: train one on this corpus"""
    vocab_size: int = 8000
    """size of the tokenizer trained, special tokens included"""
    tokenizer_characters: int = 10_000_000
    """at most this much text trains it, spread evenly over the languages"""
    clean: CleanSettings = dataclasses.field(default_factory=CleanSettings)
    min_tokens: int = 8
    """drop documents of fewer tokens"""
    exact_duplicates: bool = True
    """drop a document whose text, but for white space, was there before in its own language, not in another"""
    near_duplicates: float = 0.0
    """drop a document nearly the same as one before it in its own language, never in another, by MinHash: from this
    likeness on; 0: keep"""
    bad_lines: float = 0.0
    """leave out and report so many lines that hold no document: a share below 1, or a number; more is an error"""
    workers: int = 0
    """processes at work; 0: one a core"""
    ray: str = ""
    """let a Ray cluster do it: auto, host:port or ray://host:port; it must see the same files and OUT"""
    overwrite: bool = False
    """replace OUT if it holds token shards made from something else"""

    def __post_init__(self) -> None:
        if bool(self.corpus) == bool(self.dataset):
            given = "got both" if self.corpus else "got neither (one word alone is OUT)"
            raise SettingsError(f"give CORPUS, a folder or file of text, or --dataset, a Hugging Face dataset; {given}")
        if self.language and self.language_field:
            raise SettingsError("give --language, one code for all the text, or --language_field, not both")
        if self.language and not is_language_code(self.language):
            raise SettingsError(f"language must be a code such as sw, got {self.language!r}")
        if self.dataset and not (self.language or self.language_field):
            raise SettingsError("--dataset needs --language with a code such as sw, or --language_field")
        if self.corpus and self.split:
            raise SettingsError("--split is only for --dataset")
        one_of("layout", self.layout, ("cc100", "lines"))
        in_range("vocab_size", self.vocab_size, 16, 2**31 - 1)
        in_range("tokenizer_characters", self.tokenizer_characters, 1000, 2**40)
        in_range("min_tokens", self.min_tokens, 1, 2**31 - 1)
        in_range("near_duplicates", self.near_duplicates, 0, 1)
        if not self.bad_lines >= 0:
            raise SettingsError(f"bad_lines must be 0 or more, got {self.bad_lines!r}")
        if self.bad_lines >= 1 and not float(self.bad_lines).is_integer():
            raise SettingsError(f"bad_lines must be a share below 1 or a whole number, got {self.bad_lines!r}")
        in_range("workers", self.workers, 0, 4096)
