"""What opening shards refuses: whatever was changed, cut short, exchanged or does not fit."""

import contextlib
import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from writing_shards import LanguageWriter

from mcontriever.artifact import writing
from mcontriever.corpus import Shards, Tokenizer
from mcontriever.errors import ArtifactError

TEXTS = ["kahawa ni kinywaji cha moto", "chai ni kinywaji pia", "maziwa na maji ya kunywa kila siku"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 33)


def make(path, tokenizer, spoil=lambda folder, meta: None):
    """Shards as `prepare` writes them; `spoil` may change them before their checksums are taken."""
    with writing(path, "token shards") as draft:
        for language in ("en", "sw"):
            with LanguageWriter(draft.folder, language, tokenizer.vocab_size) as writer:
                writer.append(tokenizer.encode(TEXTS), [0, -1, 1])
        tokenizer.save(draft.folder / "tokenizer")
        draft.meta |= {
            "languages": ["en", "sw"],
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": tokenizer.fingerprint,
            "articles": 2,
        }
        spoil(draft.folder, draft.meta)
    return path


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_changed_byte_or_a_cut_is_found_in_any_file(tokenizer, tmp_path_factory, data):
    path = make(tmp_path_factory.mktemp("shards") / "shards", tokenizer)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    file = data.draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        content = content[:place]
    # of what the manifest says of itself some may change unseen, but nothing may go wrong in another way
    harmless = file.name == "manifest.json" and same_files(file, content)
    file.write_bytes(content)
    with contextlib.suppress(ArtifactError) if harmless else pytest.raises(ArtifactError):
        Shards.open(path).tokenizer()


def same_files(file, content):
    """Whether the manifest still is one, with the same files."""
    try:
        new, old = json.loads(bytes(content).decode()), json.loads(file.read_bytes())
    except ValueError:
        return False
    return all(new.get(key) == old[key] for key in ("artifact", "format", "files"))


@pytest.mark.parametrize("verify", [True, False])
def test_a_missing_or_shorter_file_is_found_without_reading_it(tokenizer, tmp_path, verify):
    path = make(tmp_path / "shards", tokenizer)
    os.truncate(path / "tokens.sw.npy", 140)
    with pytest.raises(ArtifactError, match=r"tokens\.sw\.npy: has 140 bytes, its manifest says"):
        Shards.open(path, verify=verify)
    (path / "tokens.sw.npy").unlink()
    with pytest.raises(ArtifactError, match=r"tokens\.sw\.npy: missing"):
        Shards.open(path, verify=verify)


def test_shards_of_another_tokenizer_are_found(tokenizer, tmp_path):
    other = Tokenizer.train(["coffee is a hot drink", "tea is a drink too"], 21)
    path = make(tmp_path / "shards", tokenizer, lambda folder, meta: other.save(folder / "tokenizer"))
    with pytest.raises(ArtifactError, match="its tokenizer gives other ids than the one it was made with"):
        Shards.open(path).tokenizer()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda offsets: offsets[:-1], "does not fit"),
        (lambda offsets: offsets + 1, "does not fit"),
        (lambda offsets: offsets[:0], "does not fit"),
        (lambda offsets: offsets[[0, 1, 1, 2, 3]], "does not fit"),
        (lambda offsets: offsets[[0, 2, 1, 3]], "does not rise"),
        (lambda offsets: offsets[[0, 1, 1, 3]], "does not rise"),
    ],
)
def test_offsets_that_do_not_fit_the_tokens_are_found(tokenizer, tmp_path, change, words):
    def spoil(folder, meta):
        np.save(folder / "offsets.en.npy", change(np.load(folder / "offsets.en.npy")))

    with pytest.raises(ArtifactError, match=rf"(offsets|articles)\.en\.npy {words}"):
        Shards.open(make(tmp_path / "shards", tokenizer, spoil))


@pytest.mark.parametrize("changed", ["articles", "tokens"])
def test_arrays_that_do_not_fit_each_other_are_found(tokenizer, tmp_path, changed):
    def spoil(folder, meta):
        file = folder / f"{changed}.en.npy"
        np.save(file, np.load(file)[:-1])

    with pytest.raises(ArtifactError, match=r"\.en\.npy does not fit"):
        Shards.open(make(tmp_path / "shards", tokenizer, spoil))


@pytest.mark.parametrize(
    ("name", "place", "words"), [("tokens", 3, "but the vocabulary has 33"), ("articles", 2, "but articles are 2")]
)
def test_numbers_beyond_the_vocabulary_or_the_articles_are_found(tokenizer, tmp_path, name, place, words):
    def spoil(folder, meta):
        array = np.load(folder / f"{name}.en.npy")
        array[place] = 33
        np.save(folder / f"{name}.en.npy", array)

    with pytest.raises(ArtifactError, match=rf"{name}\.en\.npy holds number 33, {words}"):
        Shards.open(make(tmp_path / "shards", tokenizer, spoil))


@pytest.mark.parametrize("missing", ["languages", "vocab_size", "articles"])
def test_a_manifest_without_its_facts_is_damaged(tokenizer, tmp_path, missing):
    with pytest.raises(ArtifactError, match="its manifest is damaged"):
        Shards.open(make(tmp_path / "shards", tokenizer, lambda folder, meta: meta.pop(missing)))
