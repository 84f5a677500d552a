"""Names: which files are read, in which language, and which are passed over but known."""

from pathlib import Path

import pytest

from mcontriever.corpus.files import (
    is_language_code,
    kind_of,
    language_files,
    language_of,
    unread_files,
)
from mcontriever.errors import DataError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("text")


@pytest.mark.parametrize(
    ("name", "language", "kind"),
    [
        ("sw.jsonl", "sw", "jsonl"),
        ("corpus.sw.jsonl.gz", "sw", "jsonl"),
        ("zh-Hans.txt.xz", "zh-Hans", "txt"),
        ("hi_rom.txt.xz", "hi_rom", "txt"),
        ("swh_Latn.parquet", "swh_Latn", "parquet"),
        ("sw_head.json.gz", "sw", "jsonl"),
        ("sw_all.json.zst", "sw", "jsonl"),
        ("c4-sw.tfrecord-00000-of-00001.json.gz", "sw", "jsonl"),
        ("c4-sw-validation.tfrecord-00000-of-00001.json.gz", "sw", "jsonl"),
        ("sw_meta_part_1.jsonl.zst", "sw", "jsonl"),
        ("sw_part_00001.parquet", "sw", "parquet"),
        ("sw-0001.jsonl", "sw", "jsonl"),
        ("part-0001.jsonl.zst", "", "jsonl"),
        ("000_00000.parquet", "", "parquet"),
        ("passages.sw.jsonl", "", "jsonl"),
        ("queries.sw.jsonl", "sw", "jsonl"),
        ("test.sw.tsv", "", ""),
        ("sw.tsv", "sw", ""),
        ("sw.json", "", ""),
        ("sw.parquet.gz", "", ""),
        ("sw.JSONL", "", ""),
        ("README.md", "", ""),
    ],
)
def test_names(name, language, kind):
    assert language_of(Path(name)) == language
    assert kind_of(Path("folder", name)) == kind


def test_codes():
    assert all(map(is_language_code, ["sw", "swh", "zh-Hant", "swh_Latn", "zh_cn"]))
    assert not any(map(is_language_code, ["", "s", "SW", "Swahili", "sw/..", "sw ", "../sw", "sw\n"]))


def test_the_language_is_the_nearest_folders_or_the_names(tmp_path):
    touch(tmp_path, "web1/sw/a/part-2.txt", "web1/sw/part-10.jsonl", "sw/sw.jsonl", "ar.txt.gz", "zu/train/0.parquet")
    touch(tmp_path, "xh_meta/xh_meta_part_1.jsonl.zst")
    touch(tmp_path, "2019-09/0000/ca_head.json.gz", "queries.sw.jsonl", "sw/queries.sw.jsonl", ".cache/en.txt")
    found = [(language, str(file.relative_to(tmp_path))) for language, file in language_files(tmp_path)]
    assert found == [
        ("ar", "ar.txt.gz"),
        ("ca", "2019-09/0000/ca_head.json.gz"),
        ("sw", "sw/sw.jsonl"),
        ("sw", "web1/sw/a/part-2.txt"),
        ("sw", "web1/sw/part-10.jsonl"),
        ("xh", "xh_meta/xh_meta_part_1.jsonl.zst"),
        ("zu", "zu/train/0.parquet"),
    ]


def test_folder_and_name_that_differ_are_an_error_unless_the_language_is_given(tmp_path):
    touch(tmp_path, "sw/en.jsonl")
    with pytest.raises(DataError, match=r"sw/en\.jsonl: its folder says its language is 'sw', its name says 'en'"):
        language_files(tmp_path)
    assert language_files(tmp_path, language="xh") == [("xh", tmp_path / "sw/en.jsonl")]
    assert language_files(tmp_path, language_field="lang") == [("", tmp_path / "sw/en.jsonl")]


def test_a_language_given_takes_every_file(tmp_path):
    touch(tmp_path, "train-1.jsonl", "more/x.parquet", "queries.jsonl", "notes.md", "table.csv")
    found = language_files(tmp_path, language="sw")
    assert [(language, file.name) for language, file in found] == [("sw", "x.parquet"), ("sw", "train-1.jsonl")]
    assert unread_files(tmp_path, language="sw") == ["table.csv"]


def test_files_passed_over_are_known(tmp_path):
    touch(tmp_path, "en.txt", "queries.sw.jsonl", "README.md", ".hidden", ".git/config", "qrels/test.sw.tsv")
    assert unread_files(tmp_path) == unread_files(tmp_path / "en.txt") == []
    mistaken = ["Swahili.jsonl", "deep/part-1.jsonl", "fr.txt.bz2", "passages.sw.jsonl", "sw.JSONL", "sw.json"]
    touch(tmp_path, *mistaken)
    assert unread_files(tmp_path) == mistaken


def test_linked_folders_are_read_and_circles_are_not_followed(tmp_path):
    touch(tmp_path, "elsewhere/part-1.jsonl", "corpus/en.txt")
    (tmp_path / "corpus/sw").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "corpus")
    assert [language for language, _ in language_files(tmp_path / "corpus")] == ["en", "sw"]


def test_missing_empty_and_nameless_inputs_are_errors(tmp_path):
    touch(tmp_path, "everything.jsonl", "sw.csv")
    (tmp_path / "empty").mkdir()
    for path, complaint in [
        (tmp_path / "nowhere", "no such file or folder; expected a folder of <lang>.jsonl"),
        (tmp_path / "empty", "no documents in it; expected <lang>.jsonl"),
        (tmp_path / "everything.jsonl", "its name states no language"),
        (tmp_path / "sw.csv", "not a kind of file that is read"),
    ]:
        with pytest.raises(DataError) as caught:
            language_files(path)
        assert str(caught.value).startswith(f"{path}: {complaint}")
        assert "\n" not in str(caught.value)
