"""`prepare`: what lands in the shards, that it is the same every time, and what bad input gets."""

import itertools
import json
import shutil

import numpy as np
import pytest
from preparing import write

from mcontriever.artifact import open_artifact
from mcontriever.corpus import NO_ARTICLE, PrepareSettings, Shards, prepare
from mcontriever.corpus.shards import GrowingArray
from mcontriever.errors import ArtifactError, DataError, SettingsError, UsageError

ENGLISH = [
    {"_id": "coffee.en", "article": "coffee", "title": "Coffee", "text": "Coffee is a drink made from roasted seeds."},
    {"_id": "tea.en", "article": "tea", "text": "Tea is a drink made from the leaves of a shrub."},
    {"_id": "short", "text": "Too short"},
    {"_id": "again", "text": "Tea is  a drink made from the\nleaves of a shrub."},
    {"_id": "alone", "text": "Nothing else in any language is about this subject."},
]
SWAHILI = [
    {"_id": "tea.sw", "article": "tea", "text": "Chai ni kinywaji kinachotengenezwa kwa majani ya mmea."},
    {"_id": "coffee.sw", "article": "coffee", "text": "Kahawa ni kinywaji kinachotengenezwa kwa mbegu."},
    {"_id": "milk.sw", "article": "milk", "text": "Maziwa ni kinywaji kinachotoka kwa wanyama wengi."},
]


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    write_corpus(folder, en=ENGLISH, sw=SWAHILI)
    return folder


def write_corpus(folder, **languages):
    for language, rows in languages.items():
        write(folder / f"corpus.{language}.jsonl", *rows)


def settings(corpus, out, **changes):
    values = {"vocab_size": 50, "min_tokens": 8} | changes
    return PrepareSettings(corpus=str(corpus), out=str(out), **values)


def texts_of(shards, language):
    offsets, tokens = shards.offsets(language), shards.tokens(language)
    return [shards.tokenizer().decode(tokens[start:end]) for start, end in itertools.pairwise(offsets)]


def test_shards_hold_every_document_once_in_order(corpus, tmp_path, capsys):
    shards = Shards.open(prepare(settings(corpus, tmp_path / "shards", min_tokens=10)))
    assert shards.languages == ["en", "sw"]
    assert texts_of(shards, "en") == [
        "Coffee Coffee is a drink made from roasted seeds.",
        ENGLISH[1]["text"],
        ENGLISH[4]["text"],
    ]
    assert texts_of(shards, "sw") == [row["text"] for row in SWAHILI]
    assert shards.articles("en").tolist() == [0, 1, NO_ARTICLE]
    assert shards.articles("sw").tolist() == [1, 0, 2]
    assert shards.article_count == 3
    assert shards.tokens("en").dtype == np.uint8
    assert shards.vocab_size == shards.tokenizer().vocab_size == 50
    meta = open_artifact(shards.path, "token shards").meta
    texts = ["Coffee\n" + ENGLISH[0]["text"], ENGLISH[1]["text"], ENGLISH[4]["text"]]
    words, characters = len(" ".join(texts).split()), len("".join(texts))
    tokens = len(shards.tokens("en"))
    assert meta["report"]["en"] == {
        "read": 5,
        "documents": 3,
        "tokens": tokens,
        "words": words,
        "characters": characters,
        "exact_duplicates": 1,
        "near_duplicates": 0,
        "near_uncompared": 0,
        "dropped": {"too_few_tokens": 1},
        "tokens_per_word": round(tokens / words, 4),
        "characters_per_token": round(characters / tokens, 4),
    }
    assert meta["bad_lines"] == {"count": 0, "of": 8, "first": []}
    written = json.loads((shards.path / "report.json").read_text())
    assert written == {name: meta[name] for name in ("report", "bad_lines")}
    printed = capsys.readouterr()
    assert printed.out == ""
    rates = [f"{tokens / words:.2f}", f"{characters / tokens:.2f}"]
    assert ["en", "3", f"{tokens}", *rates, "1", "0", "1"] in [line.split() for line in printed.err.splitlines()]


def test_same_input_same_bytes(corpus, tmp_path):
    first, second = (prepare(settings(corpus, tmp_path / name)) for name in ("first", "second"))
    files = [path.relative_to(first) for path in first.rglob("*") if path.is_file()]
    assert len(files) >= 9
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes()


def test_output_of_the_same_input_is_kept_and_of_another_refused(corpus, tmp_path, capsys):
    out = prepare(settings(corpus, tmp_path / "shards"))
    before = (out / "manifest.json").stat().st_mtime_ns
    capsys.readouterr()
    assert prepare(settings(corpus, out)) == out
    assert "kept" in capsys.readouterr().err
    for changes in ({"min_tokens": 9}, {"vocab_size": 51}):
        with pytest.raises(ArtifactError, match="made from another input or with other settings; give --overwrite"):
            prepare(settings(corpus, out, **changes))
    write_corpus(corpus, en=ENGLISH[:2])
    with pytest.raises(ArtifactError, match="made from another input"):
        prepare(settings(corpus, out))
    assert (out / "manifest.json").stat().st_mtime_ns == before
    prepare(settings(corpus, out, overwrite=True))
    assert len(Shards.open(out).articles("en")) == 2


def test_a_damaged_or_foreign_output_is_refused(corpus, tmp_path):
    out = prepare(settings(corpus, tmp_path / "shards"))
    file = out / "tokens.en.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"tokens\.en\.npy: its content differs"):
        Shards.open(out)
    with pytest.raises(ArtifactError, match=r"tokens\.en\.npy.*, or give --overwrite"):
        prepare(settings(corpus, out))
    (tmp_path / "mine").mkdir()
    for overwrite in (False, True):
        with pytest.raises(ArtifactError, match="mine holds something else than token shards; choose another place"):
            prepare(settings(corpus, tmp_path / "mine", overwrite=overwrite))


@pytest.mark.parametrize("below", ["", "corpus.en.jsonl", "shards", ".."])
def test_the_corpus_is_never_the_output(corpus, below):
    before = {path: path.read_bytes() for path in corpus.iterdir()}
    with pytest.raises(UsageError, match=f"the output {corpus / below} (is|lies in|holds) the input {corpus}"):
        prepare(settings(corpus, corpus / below, overwrite=True))
    assert {path: path.read_bytes() for path in corpus.iterdir()} == before


def test_the_tokenizer_given_is_never_the_output(corpus, tmp_path):
    first = prepare(settings(corpus, tmp_path / "first"))
    with pytest.raises(UsageError, match=r"first holds the input .*tokenizer"):
        prepare(settings(corpus, first, tokenizer=str(first / "tokenizer"), overwrite=True))
    assert Shards.open(first).languages == ["en", "sw"]


def test_files_passed_over_are_named_once(corpus, tmp_path, capsys):
    (corpus / "Swahili.jsonl").write_text("")
    (corpus / "sw.JSONL").write_text("")
    prepare(settings(corpus, tmp_path / "shards"))
    lines = [line for line in capsys.readouterr().err.splitlines() if "not read" in line]
    assert len(lines) == 1
    assert lines[0].endswith(": Swahili.jsonl, sw.JSONL")


def test_opening_unverified_reads_no_file_through(corpus, tmp_path, monkeypatch):
    out = prepare(settings(corpus, tmp_path / "shards"))
    for function in ("mcontriever.artifact.sha256", "mcontriever.corpus.shards.Tokenizer.load"):
        monkeypatch.setattr(function, lambda *_: pytest.fail("read a file through"))
    shards = Shards.open(out, verify=False)
    assert (shards.languages, len(shards.fingerprint)) == (["en", "sw"], 64)


def test_the_fingerprint_names_the_content_not_where_it_lay(corpus, tmp_path):
    first = Shards.open(prepare(settings(corpus, tmp_path / "first")))
    (corpus / "corpus.en.jsonl").rename(corpus / "en.jsonl")
    second = Shards.open(prepare(settings(corpus, tmp_path / "second")))
    moved = Shards.open(shutil.move(second.path, tmp_path / "moved"))
    write_corpus(corpus, sw=SWAHILI[::-1])
    other = Shards.open(prepare(settings(corpus, tmp_path / "other")))
    assert first.fingerprint == second.fingerprint == moved.fingerprint != other.fingerprint


def test_a_given_tokenizer_is_used(corpus, tmp_path):
    first = Shards.open(prepare(settings(corpus, tmp_path / "first")))
    given = str(first.path / "tokenizer")
    second = Shards.open(prepare(settings(corpus / "corpus.sw.jsonl", tmp_path / "second", tokenizer=given)))
    assert second.languages == ["sw"]
    assert second.tokenizer().fingerprint == first.tokenizer().fingerprint
    np.testing.assert_array_equal(second.tokens("sw"), first.tokens("sw"))
    assert second.fingerprint != first.fingerprint


def test_a_bad_line_anywhere_stops_before_anything_is_written(corpus, tmp_path):
    with (corpus / "corpus.sw.jsonl").open("ab") as stream:
        stream.write(b'{"_id": "x", "text": "\xc3"}\n')
    with pytest.raises(DataError, match=r"corpus\.sw\.jsonl:4: not UTF-8"):
        prepare(settings(corpus, tmp_path / "shards"))
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_nothing_to_prepare_is_an_error(corpus, tmp_path, capsys):
    with pytest.raises(DataError, match="no such file or folder"):
        prepare(settings(tmp_path / "nowhere", tmp_path / "shards"))
    with pytest.raises(DataError, match="no document has 500 tokens or more; give a smaller --min_tokens"):
        prepare(settings(corpus, tmp_path / "shards", min_tokens=500))
    assert not (tmp_path / "shards").exists()
    write_corpus(corpus, en=[], sw=[])
    with pytest.raises(DataError, match=r"corpus\.en\.jsonl: empty; expected one document"):
        prepare(settings(corpus, tmp_path / "shards"))
    assert not (tmp_path / "shards").exists()
    capsys.readouterr()
    write_corpus(corpus, en=ENGLISH, sw=[{"_id": "1", "text": "mbegu"}])
    shards = Shards.open(prepare(settings(corpus, tmp_path / "shards", vocab_size=45)))
    assert shards.languages == ["en"]
    assert "sw: no document of at least 8 tokens: the language is left out" in capsys.readouterr().err


def test_a_hugging_face_dataset_gives_the_same_shards_as_its_files(tmp_path, capsys):
    pytest.importorskip("datasets")
    rows = [{"_id": f"{row}", **SWAHILI[row % 3], "text": f"{SWAHILI[row % 3]['text']} {row}"} for row in range(12)]
    rows[5]["title"] = "Maziwa"
    write_corpus(tmp_path / "files", sw=rows)
    write(tmp_path / "dataset" / "train.jsonl", *rows)
    write(tmp_path / "dataset" / "test.jsonl", rows[0])
    expected = Shards.open(prepare(settings(tmp_path / "files", tmp_path / "expected")))

    def hub(out, **changes):
        given = {"dataset": str(tmp_path / "dataset"), "language": "sw", "vocab_size": 50} | changes
        return prepare(PrepareSettings(out=str(tmp_path / out), **given))

    shards = Shards.open(hub("shards"))
    assert shards.languages == ["sw"]
    assert shards.titles("sw")[5] > 0
    for array in ("tokens", "offsets", "articles", "titles"):
        np.testing.assert_array_equal(getattr(shards, array)("sw"), getattr(expected, array)("sw"))
    assert shards.tokenizer().fingerprint == expected.tokenizer().fingerprint
    capsys.readouterr()
    hub("shards")
    assert "kept" in capsys.readouterr().err
    with pytest.raises(ArtifactError, match="made from another input"):
        hub("shards", split="test", tokenizer=str(expected.path / "tokenizer"))
    with pytest.raises(DataError, match=r"dataset: cannot be read as a Hugging Face dataset, split 'dev'"):
        hub("other", split="dev")
    with pytest.raises(DataError, match=r"\[train\]:1: expected text under 'body'"):
        hub("other", field="body")
    with (tmp_path / "dataset" / "train.jsonl").open("a") as stream:
        stream.write(json.dumps(rows[3] | {"text": "Kitu kipya kabisa kimeandikwa hapa leo."}) + "\n")
    with pytest.raises(ArtifactError, match="made from another input"):
        hub("shards")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"corpus": "a", "dataset": "b", "language": "sw"}, "got both"),
        ({}, "a Hugging Face dataset; got neither (one word alone is OUT)"),
        ({"dataset": "b"}, "--dataset needs --language with a code such as sw, or --language_field"),
        ({"dataset": "b", "language": "../x"}, "language must be a code such as sw, got '../x'"),
        ({"corpus": "a", "language": "sw", "language_field": "lang"}, "not both"),
        ({"corpus": "a", "split": "test"}, "--split is only for --dataset"),
        ({"corpus": "a", "bad_lines": -1}, "bad_lines must be 0 or more, got -1"),
        ({"corpus": "a", "bad_lines": float("nan")}, "bad_lines must be 0 or more, got nan"),
        ({"corpus": "a", "bad_lines": 1.5}, "bad_lines must be a share below 1 or a whole number, got 1.5"),
    ],
)
def test_corpus_or_dataset(given, words):
    with pytest.raises(SettingsError) as caught:
        PrepareSettings(out="x", **given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"vocab_size": 3}, {"min_tokens": 0}, {"tokenizer_characters": 1}])
def test_settings_out_of_range(changes):
    with pytest.raises(SettingsError, match=next(iter(changes))):
        settings("in", "out", **changes)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i8"])
def test_arrays_grow_chunk_by_chunk_and_are_empty_until_they_are_closed(tmp_path, dtype):
    array = GrowingArray(tmp_path / "a.npy", dtype)
    for chunk in ([1, 2, 255], [], [7]):
        array.append(np.array(chunk, dtype=np.int64))
    assert (len(np.load(tmp_path / "a.npy")), array.count) == (0, 4)
    array.close()
    found = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert (found.dtype, found.tolist()) == (np.dtype(dtype), [1, 2, 255, 7])


def test_bad_rows_of_a_dataset_are_left_out_and_told(tmp_path, capsys):
    pytest.importorskip("datasets")
    rows = [{"lang": "sw", **SWAHILI[0]}, {"lang": "x y", **SWAHILI[1]}, {"lang": "en", **ENGLISH[4]}]
    write(tmp_path / "dataset" / "train.jsonl", *({"article": "", **row} for row in rows))
    given = {"dataset": str(tmp_path / "dataset"), "language_field": "lang", "vocab_size": 40}
    with pytest.raises(DataError, match=r"\[train\]:2: expected a language code such as sw under 'lang'"):
        prepare(PrepareSettings(out=str(tmp_path / "strict"), **given))
    assert not (tmp_path / "strict.pieces").exists()
    out = prepare(PrepareSettings(out=str(tmp_path / "shards"), bad_lines=1, **given))
    assert Shards.open(out).languages == ["en", "sw"]
    listed = [json.loads(line)["where"] for line in (out / "bad-lines.jsonl").read_text().splitlines()]
    assert [where.rpartition("/")[2] for where in listed] == ["dataset[train]:2"]
    assert "1 bad lines of 3 were left out" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "shards"]
