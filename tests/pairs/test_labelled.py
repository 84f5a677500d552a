"""Labelled pairs: both formats, what is grouped, and that an epoch holds every example once."""

import json

import numpy as np
import pytest

from mcontriever.corpus import Tokenizer
from mcontriever.errors import DataError, SettingsError
from mcontriever.pairs import LabelledPairs, LabelledSettings
from mcontriever.pairs.labelled import Example, groups, read_examples

ROWS = [
    {"query": f"what is thing {number}?", "positive": {"title": f"Thing {number}", "text": f"It is thing {number}."}}
    for number in range(9)
]


@pytest.fixture(scope="module")
def tokenizer():
    texts = [row["query"] + " Passage: Query: " + " ".join(row["positive"].values()) for row in ROWS]
    return Tokenizer.train(texts, 40)


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def labelled(path, tokenizer, seed=3, **contract):
    return LabelledPairs(LabelledSettings(file=str(path)), tokenizer, seed, **contract)


def texts(packed, tokenizer):
    return [tokenizer.decode(row.tolist()) for row in packed.split()]


def test_an_epoch_holds_every_example_once_for_any_number_of_ranks(tmp_path, tokenizer):
    file = lines(tmp_path / "pairs.jsonl", ROWS)
    whole = labelled(file, tokenizer)
    assert len(whole) == 9
    seen = []
    for step in range(6):
        batch = whole.batch(step, np.arange(3), 3)
        queries, passages = texts(batch.query, tokenizer), texts(batch.passage, tokenizer)
        for query, passage in zip(queries, passages, strict=True):
            number = query.split()[-1].rstrip("?")
            assert passage == f"Thing {number} It is thing {number}."
            seen.append(int(number))
        parts = [labelled(file, tokenizer).batch(step, np.arange(rank, 3, 2), 3) for rank in range(2)]
        assert [*texts(parts[0].query, tokenizer), *texts(parts[1].query, tokenizer)] == [*queries[::2], *queries[1::2]]
    assert sorted(seen[:9]) == sorted(seen[9:]) == list(range(9))
    assert seen[:9] != seen[9:]


def test_the_contract_decides_how_texts_are_joined(tmp_path, tokenizer):
    file = lines(tmp_path / "pairs.jsonl", ROWS[:1])
    contract = {"query_prefix": "Query: ", "passage_prefix": "Passage: ", "title_joiner": ". ", "lowercase": True}
    batch = labelled(file, tokenizer, **contract).batch(0, np.arange(1), 1)
    expected = ["query: what is thing 0?", "passage: thing 0. it is thing 0."]
    ids = tokenizer.encode(expected)
    assert batch.query.ids.tolist() == [0, *ids[0].tolist(), 2]
    assert batch.passage.ids.tolist() == [0, *ids[1].tolist(), 2]


def test_long_texts_are_cut(tmp_path, tokenizer):
    row = {"query": "thing " * 50, "positive": {"text": "thing " * 50}}
    settings = LabelledSettings(file=str(lines(tmp_path / "p.jsonl", [row])), query_max_length=6, passage_max_length=9)
    batch = LabelledPairs(settings, tokenizer, 0).batch(0, np.arange(1), 1)
    assert batch.query.lengths.tolist() == [6]
    assert batch.passage.lengths.tolist() == [9]


def test_what_is_cut_is_told(tmp_path, tokenizer):
    rows = [{"query": "thing", "positive": {"text": "thing " * times}} for times in (1, 1, 50)]
    path = str(lines(tmp_path / "p.jsonl", rows))
    fits = len(tokenizer.encode(["thing"])[0]) + 2
    made = LabelledPairs(LabelledSettings(file=path, query_max_length=fits, passage_max_length=fits + 1), tokenizer, 0)
    assert made.cut() == f"labelled.passage_max_length {fits + 1} cuts off the end of 1 of 3 passages"
    made = LabelledPairs(LabelledSettings(file=path, query_max_length=fits - 1), tokenizer, 0)
    assert made.cut().startswith(f"labelled.query_max_length {fits - 1} cuts off the end of 3 of 3 queries; labelled.")
    assert labelled(lines(tmp_path / "q.jsonl", rows[:2]), tokenizer).cut() == ""


def test_groups_join_what_shares_a_passage_or_a_query():
    def example(query, topic):
        return Example(query, "", "text", topic, "en")

    made = groups([example("a", "1"), example("b", "1"), example("c", "2"), example("b", "3"), example("d", "4")])
    assert made[0] == made[1] == made[3]
    assert len({made[0], made[2], made[4]}) == 3


def test_lines_are_grouped_by_passage_or_by_their_group(tmp_path):
    same = {"title": "T", "text": "x"}
    rows = [
        {"query": "a", "positive": same},
        {"query": "b", "positive": same},
        {"query": "c", "positive": {"title": "", "text": "T\nx y"}, "group": "g"},
        {"query": "d", "positive": {"text": "z"}, "group": "g", "source": "not looked at"},
    ]
    made = groups(list(read_examples(lines(tmp_path / "p.jsonl", rows)))).tolist()
    assert made == [0, 0, 1, 1]


def folder(path, qrels="query-id\tcorpus-id\tscore\nq1\tp1\t1\nq2\tp2\t1\nq2\tp3\t0\n"):
    (path / "qrels").mkdir(parents=True)
    (path / "qrels" / "train.en.tsv").write_text(qrels)
    lines(path / "queries.en.jsonl", [{"_id": "q1", "text": "one"}, {"_id": "q2", "text": "two"}])
    lines(path / "corpus.en.jsonl", [{"_id": f"p{number}", "title": "T", "text": f"x{number}"} for number in (1, 2, 3)])
    return path


def test_a_folder_of_judgements(tmp_path, tokenizer):
    made = list(read_examples(folder(tmp_path / "beir")))
    assert made == [Example("one", "T", "x1", "en:p1", "en"), Example("two", "T", "x2", "en:p2", "en")]
    batch = labelled(tmp_path / "beir", tokenizer).batch(0, np.arange(2), 2)
    assert batch.language_counts() == {"en": 2}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"query": "a"}, ":1: expected .*got the keys 'query'"),
        ({"query": " ", "positive": {"text": "x"}}, ":1: 'query' is empty"),
        ({"query": "a", "positive": {"text": None}}, ":1: expected text under 'text'"),
        ({"query": "a", "positive": {"text": "x", "title": 3}}, ":1: expected text under 'title'"),
        ({"query": "half \ud83d", "positive": {"text": "x"}}, ":1: 'query' holds half a surrogate pair"),
        ({"query": "a", "positive": {"text": "x"}, "group": []}, ":1: 'group' must be text"),
    ],
)
def test_bad_lines(tmp_path, row, complaint):
    with pytest.raises(DataError, match=r"p\.jsonl" + complaint):
        list(read_examples(lines(tmp_path / "p.jsonl", [row])))


def test_missing_and_empty_inputs(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        list(read_examples(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no labelled pair in it"):
        list(read_examples(lines(tmp_path / "p.jsonl", [])))
    with pytest.raises(DataError, match="no training judgements"):
        list(read_examples(tmp_path))
    header = "query-id\tcorpus-id\tscore\n"
    with pytest.raises(DataError, match=r"train\.en\.tsv: judges passage 'p9', which is not in the folder"):
        list(read_examples(folder(tmp_path / "one", header + "q1\tp9\t1\n")))
    with pytest.raises(DataError, match=r"train\.en\.tsv: judges query 'q9'"):
        list(read_examples(folder(tmp_path / "two", header + "q9\tp1\t1\n")))
    with pytest.raises(SettingsError, match="query_max_length"):
        LabelledSettings(query_max_length=2)
