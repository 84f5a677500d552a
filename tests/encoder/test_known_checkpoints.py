"""Each row of the registry on a tiny folder of the layout its model has on the hub, used as the papers say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from mcontriever.cli import main
from mcontriever.encoder import CheckpointError, checkpoint, load, registry

E5 = ("query: ", "passage: ")
INSTRUCT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "


class Layout(NamedTuple):
    """What a model's folder on the hub looks like, and how its authors use it."""

    folder: dict[str, Any]
    pooling: str
    unit: bool
    prefixes: tuple[str, str] = ("", "")
    lengths: tuple[int, int] = (512, 512)
    modules: tuple[str, ...] = ()


BERT = {"kind": "bert", "words": "bert"}
OLD = BERT | {"pickled": True}
CONTRIEVER = Layout(OLD | {"pooling": "average", "architectures": ["Contriever"]}, "mean", False)
MDPR = Layout(OLD, "cls", False, lengths=(512, 256))
PARTS = ("Transformer", "Pooling", "Normalize")
LAYOUTS = {
    "FacebookAI/xlm-roberta-base": Layout({"masked": True}, "mean", False),
    "FacebookAI/xlm-roberta-large": Layout({"masked": True}, "mean", False),
    "google-bert/bert-base-multilingual-cased": Layout(BERT | {"masked": True}, "mean", False),
    "google-bert/bert-base-multilingual-uncased": Layout(BERT | {"masked": True}, "mean", False),
    "google-bert/bert-base-uncased": Layout(BERT | {"masked": True}, "mean", False),
    "facebook/mcontriever": CONTRIEVER,
    "facebook/mcontriever-msmarco": CONTRIEVER,
    "facebook/contriever": CONTRIEVER,
    "facebook/contriever-msmarco": CONTRIEVER,
    "nthakur/mcontriever-base-msmarco": Layout(OLD, "mean", False, modules=("Transformer", "Pooling")),
    "castorini/mdpr-tied-pft-msmarco": MDPR,
    "castorini/mdpr-tied-pft-msmarco-ft-all": MDPR,
    "castorini/mdpr-tied-pft-msmarco-ft-miracl-*": MDPR,
    "castorini/afriberta-dpr-pft-msmarco-ft-latin-mrtydi": Layout({"pickled": True}, "cls", False, lengths=(512, 256)),
    "intfloat/multilingual-e5-small": Layout({"kind": "bert"}, "mean", True, E5, modules=PARTS),
    "intfloat/multilingual-e5-base": Layout({}, "mean", True, E5, modules=PARTS),
    "intfloat/multilingual-e5-large": Layout({}, "mean", True, E5, modules=PARTS),
    "intfloat/multilingual-e5-large-instruct": Layout({}, "mean", True, (INSTRUCT, ""), modules=PARTS),
    "BAAI/bge-m3": Layout({"pickled": True}, "cls", True, lengths=(8192, 8192), modules=PARTS),
    "BAAI/bge-m3-unsupervised": Layout({}, "cls", True, lengths=(8192, 8192), modules=PARTS),
    "BAAI/bge-m3-retromae": Layout({"pickled": True}, "cls", True, lengths=(8192, 8192)),
    "Snowflake/snowflake-arctic-embed-l-v2.0": Layout(
        {}, "cls", True, ("query: ", ""), lengths=(8192, 8192), modules=PARTS
    ),
    "sentence-transformers/LaBSE": Layout(
        BERT, "cls", True, lengths=(256, 256), modules=("Transformer", "Pooling", "Dense", "Normalize")
    ),
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2": Layout(
        {"kind": "bert"}, "mean", True, lengths=(128, 128), modules=("Transformer", "Pooling")
    ),
    "sentence-transformers/paraphrase-multilingual-mpnet-base-v2": Layout(
        {}, "mean", True, lengths=(128, 128), modules=("Transformer", "Pooling")
    ),
    "ibm-granite/granite-embedding-107m-multilingual": Layout({}, "cls", True, modules=PARTS),
    "ibm-granite/granite-embedding-278m-multilingual": Layout({}, "cls", True, modules=PARTS),
}


def write_modules(folder: Path, layout: Layout) -> None:
    """sentence-transformers' files as its versions before 6 wrote them."""
    rows = []
    for number, kind in enumerate(layout.modules):
        place = "" if kind == "Transformer" else f"{number}_{kind}"
        rows.append({"idx": number, "name": str(number), "path": place, "type": f"sentence_transformers.models.{kind}"})
        (folder / place).mkdir(exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 512, "do_lower_case": False}))
    modes = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max"}
    (folder / "1_Pooling/config.json").write_text(
        json.dumps({"word_embedding_dimension": 16} | {key: mode == layout.pooling for key, mode in modes.items()})
    )
    if "Dense" in layout.modules:
        said = {"in_features": 16, "out_features": 12, "bias": True}
        said["activation_function"] = "torch.nn.modules.activation.Tanh"
        (folder / "2_Dense/config.json").write_text(json.dumps(said))
        torch.manual_seed(1)
        save_file(
            {"linear.weight": torch.randn(12, 16), "linear.bias": torch.randn(12)}, folder / "2_Dense/model.safetensors"
        )


def dense(folder: Path, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    weights = load_file(folder / "2_Dense/model.safetensors")
    return np.tanh(vectors @ weights["linear.weight"].numpy().T + weights["linear.bias"].numpy())


@pytest.fixture
def on_the_hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], list[list[str]]]:
    """The hub holds this folder under every name; what is asked of it is listed."""

    def put(folder: Path) -> list[list[str]]:
        asked: list[list[str]] = []

        def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
            asked.append(allow_patterns)
            return str(folder)

        monkeypatch.setattr(checkpoint, "snapshot_download", download)
        return asked

    return put


def test_every_row_has_its_layout_here() -> None:
    assert list(LAYOUTS) == list(registry.KNOWN)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_known_checkpoint_is_used_as_its_authors_use_it(
    name: str,
    tiny: Callable[..., Path],
    pooled: Callable[..., NDArray[np.float32]],
    on_the_hub: Callable[[Path], object],
    texts: list[str],
) -> None:
    layout = LAYOUTS[name]
    folder = tiny(room=max(layout.lengths), **layout.folder)
    if layout.modules:
        write_modules(folder, layout)
    on_the_hub(folder)
    encoder = load(name.replace("*", "sw"), device="cpu")
    contract = encoder.contract
    assert (contract.query_max_length, contract.passage_max_length) == layout.lengths
    assert contract.similarity == ("cosine" if layout.unit else "dot")
    long = [*texts, " ".join(texts * 9)]
    for prefix, length, encode in zip(
        layout.prefixes, layout.lengths, (encoder.encode_queries, encoder.encode_passages), strict=True
    ):
        expected = pooled(folder, [prefix + text for text in long], layout.pooling, length)
        if "Dense" in layout.modules:
            expected = dense(folder, expected)
        if layout.unit:
            expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        found = encode(long)
        assert np.abs(expected[0] - expected[1]).max() > 0.01
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("pattern", registry.REFUSED)
def test_what_cannot_be_loaded_is_refused_before_a_byte_is_fetched(
    pattern: str, on_the_hub: Callable[[Path], list[list[str]]], tmp_path: Path
) -> None:
    asked = on_the_hub(tmp_path)
    row = registry.REFUSED[pattern]
    name = pattern.replace("*", "0.6B")
    for ending in ("", "@main"):
        with pytest.raises(CheckpointError) as error:
            load(name + ending)
        assert str(error.value) == f"{name}{ending}: cannot be loaded, for {row.why}; take {row.instead}"
    assert row.instead in registry.KNOWN
    assert registry.find(name) is None
    assert asked == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "dpr"}, r"'dpr' cannot be loaded \(it is one of two encoders.*take castorini/mdpr-tied-pft"),
        ({"model_type": "qwen3"}, r"'qwen3' cannot be loaded \(it is a decoder.*take intfloat/"),
        ({"model_type": "gemma3_text"}, r"'gemma3_text' cannot be loaded \(it is a decoder.*take intfloat/"),
        ({"model_type": "new", "auto_map": {"AutoModel": "x.Y"}}, r"never run here; take BAAI/bge-m3"),
        ({"model_type": "bert", "auto_map": {"AutoModel": "x.Y"}}, r"never run here$"),
    ],
)
def test_the_same_models_in_a_folder_are_refused_with_the_reason(
    changes: dict[str, object], message: str, tiny: Callable[..., Path]
) -> None:
    folder = tiny()
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_a_known_model_whose_folder_lost_its_projection_is_refused(
    tiny: Callable[..., Path], on_the_hub: Callable[[Path], object]
) -> None:
    folder = tiny(room=256, **BERT)
    on_the_hub(folder)
    with pytest.raises(CheckpointError, match=r"^sentence-transformers/LaBSE: its folder has no projection, .* tanh"):
        load("sentence-transformers/LaBSE")


def test_inspect_tells_a_hub_names_contract_without_its_weights(
    tiny: Callable[..., Path], on_the_hub: Callable[[Path], list[list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny(room=512, **OLD)
    (folder / "pytorch_model.bin").unlink()
    asked = on_the_hub(folder)
    main(["inspect", "facebook/mcontriever"])
    shown = capsys.readouterr().out
    assert (
        "facebook/mcontriever: a checkpoint without a contract of ours; how to use it is said by the registry" in shown
    )
    assert "mean of all tokens, left at their length" in shown
    assert "dot product" in shown
    assert not any("safetensors" in pattern or ".bin" in pattern for pattern in asked[0])


def test_a_pickle_is_read_with_a_word_and_adopted_as_safetensors(
    tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], texts: list[str]
) -> None:
    folder = tiny(**CONTRIEVER.folder)
    capsys.readouterr()
    encoder = load(folder, device="cpu")
    assert (encoder.contract.pooling, encoder.contract.normalise, encoder.contract.similarity) == ("mean", False, "dot")
    said = capsys.readouterr().err
    assert "pytorch_model.bin: pickles, of which only tensors are read; `mcontriever adopt` writes them" in said
    assert said.count("\n") == 1
    main(["adopt", str(folder), str(tmp_path / "ours")])
    capsys.readouterr()
    adopted = load(tmp_path / "ours", device="cpu")
    assert capsys.readouterr().err == ""
    assert not list((tmp_path / "ours").glob("*.bin"))
    np.testing.assert_array_equal(adopted.encode_queries(texts), encoder.encode_queries(texts))


def test_the_pooling_of_a_configuration_is_taken_and_one_unknown_refused(tiny: Callable[..., Path]) -> None:
    assert load(tiny("a", pooling="cls", architectures=["XLMRetriever"])).contract.pooling == "cls"
    with pytest.raises(CheckpointError, match=r"give load\(…, similarity="):
        load(tiny("b", pooling="average"))
    with pytest.raises(
        CheckpointError, match=r"config\.json: pooling 'max' cannot be loaded; known: average, mean, cls"
    ):
        load(tiny("c", pooling="max"))


def test_the_page_names_every_family() -> None:
    page = (Path(__file__).parents[2] / "docs/checkpoints.md").read_text(encoding="utf-8")
    known = page.partition("## Known names")[2].partition("Refused")[0]
    for name in registry.KNOWN:
        owner, _, model = name.partition("/")
        endings = [model[place:] for place in range(len(model)) if model[place] == "-"]
        assert any(f"`{part}`" in known for part in (name, model, *endings)), name
        assert f"`{owner}/" in known, name
    for name in registry.REFUSED:
        family = name.partition("/")[2].rstrip("*-").removesuffix("-base")
        stem = family.removeprefix("snowflake-").partition("-v2")[0].replace("nomic-embed-text", "nomic-embed")
        assert stem.lower().partition("-oss")[0] in page.replace("EmbeddingGemma", "embeddinggemma").lower(), name


def test_what_only_the_registry_knows_of_a_copy_is_told(
    tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tiny("multilingual-e5-base", room=512)
    load(copy, device="cpu", pooling="mean", similarity="cosine")
    said = capsys.readouterr().err
    assert "is it intfloat/multilingual-e5-base? That is used with query_prefix 'query: ', passage_prefix" in said
    load(copy, device="cpu", pooling="mean", similarity="cosine", query_prefix="query: ", passage_prefix="passage: ")
    assert "is it" not in capsys.readouterr().err


def test_a_contradiction_between_a_folder_and_its_user_is_told(
    tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny(room=512, pooling="average", architectures=["Contriever"])
    assert load(folder, device="cpu", pooling="cls").contract.pooling == "cls"
    assert "pooling 'cls' as you say; its config.json: 'mean'" in capsys.readouterr().err
