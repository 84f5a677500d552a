"""The tokenizer: XLM-R's layout, the same ids everywhere, and errors of one line."""

import json

import numpy as np
import pytest
import sentencepiece

from mcontriever.corpus.tokenizer import Tokenizer
from mcontriever.errors import DataError

TEXTS = [
    f"{subject} {verb} {thing}, {number}."
    for subject in ("The farmer", "Mkulima", "Крестьянин", "الفلاح", "農夫は")
    for verb in ("grows", "hulima", "выращивает", "يزرع", "育てる")
    for thing in ("coffee", "kahawa", "кофе", "القهوة", "コーヒー")
    for number in range(3)
]
UNSEEN = ["Mkulima grows コーヒー", "ＡＢＣ\u00a0x  y\n\tz", "", "ß😀 ☃", "e\u0301 кофе"]


@pytest.fixture(scope="module")
def trained():
    return Tokenizer.train(TEXTS, 66)


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    trained.save(folder)
    return folder


def lists(rows):
    return [row.tolist() for row in rows]


def test_layout_is_xlm_r(trained, saved):
    assert (trained.bos, trained.pad, trained.eos, trained.unk) == (0, 1, 2, 3)
    assert trained.mask == trained.vocab_size - 1 == 65
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(saved / "sentencepiece.bpe.model"))
    assert len(pieces) == 64
    for text, ids in zip(TEXTS + UNSEEN, trained.encode(TEXTS + UNSEEN), strict=True):
        assert ids.dtype == np.int32
        assert ids.tolist() == [number + 1 if number else 3 for number in pieces.encode(text)]


def test_training_is_deterministic(trained, saved, tmp_path):
    again = Tokenizer.train(iter(TEXTS), 66)
    again.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in saved.iterdir())
    for path in saved.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
    assert again.fingerprint == trained.fingerprint
    assert Tokenizer.train(TEXTS, 65).fingerprint != trained.fingerprint


def test_auto_tokenizer_gives_the_same_ids(trained, saved):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(saved)
    assert theirs(TEXTS + UNSEEN, add_special_tokens=False)["input_ids"] == lists(trained.encode(TEXTS + UNSEEN))
    assert theirs("coffee")["input_ids"] == [0, *trained.encode(["coffee"])[0].tolist(), 2]
    assert len(theirs) == trained.vocab_size
    special = (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, theirs.unk_token_id, theirs.mask_token_id)
    assert special == (trained.bos, trained.eos, trained.pad, trained.unk, trained.mask)


def test_every_way_of_loading_gives_the_same_tokenizer(trained, saved, tmp_path):
    (tmp_path / "bare.model").write_bytes((saved / "sentencepiece.bpe.model").read_bytes())
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "sentencepiece.bpe.model").write_bytes((tmp_path / "bare.model").read_bytes())
    for place in (saved, saved / "tokenizer.json", tmp_path / "bare.model", tmp_path / "folder"):
        loaded = Tokenizer.load(place)
        assert loaded.fingerprint == trained.fingerprint
        assert lists(loaded.encode(UNSEEN)) == lists(trained.encode(UNSEEN))


def test_truncation_and_padding_in_the_file_do_not_count(trained, saved, tmp_path):
    content = json.loads((saved / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert lists(Tokenizer.load(tmp_path).encode(TEXTS[:3])) == lists(trained.encode(TEXTS[:3]))


def test_the_fingerprint_sees_scores_and_normalisation(trained, saved, tmp_path):
    def changed(change):
        content = json.loads((saved / "tokenizer.json").read_text())
        change(content)
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        return Tokenizer.load(tmp_path).fingerprint

    def score(content):
        content["model"]["vocab"][50][1] -= 1.0

    assert changed(lambda content: None) == trained.fingerprint
    assert changed(score) != trained.fingerprint
    assert changed(lambda content: content.update(normalizer=None)) != trained.fingerprint


def test_text_never_becomes_a_special_token(trained):
    plain, spelled, nothing = trained.encode(["coffee kahawa", "coffee</s> <mask> kahawa<pad>", "<s>"])
    assert spelled.tolist() == plain.tolist()
    assert nothing.tolist() == []
    assert trained.encode([]) == []


def test_decode_gives_the_text_back(trained):
    assert trained.decode([0, *trained.encode([TEXTS[7]])[0], 2]) == TEXTS[7]


def test_bert_vocabularies(tmp_path):
    from transformers import AutoTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "coffee", "Coffee", "##s", ".", "農"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    cased = Tokenizer.load(tmp_path)
    assert (cased.bos, cased.eos, cased.pad, cased.unk, cased.mask) == (2, 3, 0, 1, 4)
    assert lists(cased.encode(["Coffees. 農coffee tea"])) == [[6, 7, 8, 9, 5, 1]]
    cased.save(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs("Coffees. 農coffee tea")["input_ids"] == [2, 6, 7, 8, 9, 5, 1, 3]
    assert Tokenizer.load(tmp_path / "saved").fingerprint == cased.fingerprint
    (tmp_path / "vocab.txt").write_text("\n".join(word for word in words if word != "Coffee"), encoding="utf-8")
    uncased = Tokenizer.load(tmp_path / "vocab.txt")
    assert lists(uncased.encode(["COFFEES"])) == [[5, 6]]


def test_bad_tokenizers_are_errors_of_one_line(tmp_path, saved):
    model = (saved / "sentencepiece.bpe.model").read_bytes()
    files = {
        "damaged.model": model[: len(model) // 2],
        "noise.model": b"\x00\xff" * 50,
        "damaged.json": b"{",
        "special.txt": b"just\nwords\n",
        "latin.txt": b"caf\xe9\n",
        "other.bin": b"",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name in [*files, "nowhere", "."]:
        with pytest.raises(DataError) as caught:
            Tokenizer.load(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damaged", [b"{", b"[]", b"\xff", b""])
def test_a_damaged_configuration_is_an_error_of_one_line(tmp_path, damaged):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ncoffee\n")
    (tmp_path / "tokenizer_config.json").write_bytes(damaged)
    with pytest.raises(DataError, match=r"tokenizer_config\.json: damaged") as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_the_text_cannot_fill_says_what_would_do():
    with pytest.raises(DataError, match=r"vocab_size 5000 on this text: .* at most \d+$") as caught:
        Tokenizer.train(TEXTS, 5000)
    most = int(str(caught.value).split()[-1])
    assert Tokenizer.train(TEXTS, most).vocab_size == most
    with pytest.raises(DataError, match=r"vocab_size 20 on this text: .* at least \d+$"):
        Tokenizer.train(TEXTS, 20)
    with pytest.raises(DataError, match="there is none"):
        Tokenizer.train([" "], 20)


def test_long_lines_are_trained_on():
    pieces = Tokenizer.train([" ".join(["zebra quagga"] * 2000)], 20)
    assert max(pieces.encode(["zebra"])[0]) > 3
    assert 3 not in pieces.encode(["zebra quagga"])[0]


@pytest.mark.parametrize("character", ["農", "😀"])  # 3 and 4 bytes: 1,398 and 1,049 of them reach the limit
def test_long_lines_are_trained_on_in_every_script(character):
    japanese = [f"{character}夫は{thing}を育てる。" for thing in ("コーヒー", "お茶", "お米", "小麦")]
    joined = Tokenizer.train(["The farmer grows coffee.", "".join(japanese * 200)[:4000]], 36)
    assert not any(joined.unk in row for row in joined.encode(japanese))
