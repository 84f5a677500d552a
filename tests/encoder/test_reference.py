"""checkpoint.pth as the published Contriever code saves it: read, adopted, and never executed."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModel

from mcontriever.cli import main
from mcontriever.encoder import CheckpointError, load, reference

LAYOUTS = ("moco", "in-batch", "fine-tuned")


def state(folder: Path, layout: str, **options: object) -> dict[str, Any]:
    """What `save` of the published code puts into the file."""
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights["embeddings.position_ids"] = torch.arange(66)[None]
    if layout == "moco":
        keys = {f"encoder_k.{name}": tensor + 1 for name, tensor in weights.items()}
        weights = {f"encoder_q.{name}": tensor for name, tensor in weights.items()} | keys
        weights |= {"queue": torch.randn(16, 8), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    elif layout == "in-batch":
        weights = {f"encoder.{name}": tensor for name, tensor in weights.items()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.98))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1.0)
    said = {"pooling": "average", "norm_doc": False, "norm_query": False, "lower_case": False} | options
    opt = argparse.Namespace(retriever_model_id="bert-base-multilingual-cased", train_data=["/data/en"], **said)
    return {
        "step": 200_000,
        "model": weights,
        "optimizer": optimiser.state_dict(),
        "scheduler": schedule.state_dict(),
        "opt": opt,
    }


@pytest.fixture
def made(tiny: Callable[..., Path]) -> Path:
    return tiny("began", "bert", words="bert")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("old", [False, True], ids=["zip", "before torch 1.6"])
def test_each_layout_is_adopted_with_the_vectors_of_its_query_encoder(
    layout: str,
    old: bool,
    made: Path,
    tmp_path: Path,
    texts: list[str],
    pooled: Callable[..., NDArray[np.float32]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "latest").mkdir()
    file = tmp_path / "latest/checkpoint.pth"
    torch.save(state(made, layout), file, _use_new_zipfile_serialization=not old)
    main(["adopt", str(file if old else file.parent), str(tmp_path / "ours"), "--tokenizer", str(made)])
    assert "mean of all tokens, left at their length" in capsys.readouterr().out
    encoder = load(tmp_path / "ours", device="cpu")
    assert (encoder.contract.similarity, encoder.contract.normalise) == ("dot", False)
    np.testing.assert_allclose(encoder.encode_queries(texts), pooled(made, texts, "mean", 64), atol=1e-5)
    main(["inspect", str(file)])
    shown = capsys.readouterr().out
    assert f"layout:       {layout}\n" in shown
    assert "step:         200,000\n" in shown
    assert "bert-base-multilingual-cased" in shown


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"pooling": "cls"}, ("cls", False, "dot", False)),
        ({"norm_doc": True, "norm_query": True}, ("mean", True, "cosine", False)),
        ({"norm_query": True}, ("mean", False, "dot", False)),
        ({"lower_case": True}, ("mean", False, "dot", True)),
    ],
)
def test_its_options_say_how_it_is_used(
    options: dict[str, object], expected: tuple[object, ...], made: Path, tmp_path: Path
) -> None:
    torch.save(state(made, "in-batch", **options), tmp_path / "a.pth")
    said = reference.convert(reference.read(tmp_path / "a.pth"), str(made), {}).contract
    assert (said.pooling, said.normalise, said.similarity, said.lowercase) == expected


def test_what_it_began_as_is_asked_of_the_hub_by_its_present_name(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(reference.checkpoint, "download", lambda name, **_: (asked.append(name), made)[1])
    torch.save(state(made, "moco"), tmp_path / "a.pth")
    reference.convert(reference.read(tmp_path / "a.pth"), "", {})
    assert asked == ["google-bert/bert-base-multilingual-cased"]


class Hostile:
    """Unpickled, it would run a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("place", ["top", "opt", "model", "optimizer", "bare pickle", "bin"])
def test_a_hostile_pickle_is_refused_and_not_run(place: str, made: Path, tmp_path: Path) -> None:
    mark, file = tmp_path / "it ran".replace(" ", "_"), tmp_path / "checkpoint.pth"
    content = state(made, "moco")
    hostile = Hostile(mark)
    if place == "opt":
        content["opt"].train_data = [hostile]
    elif place in ("model", "optimizer"):
        content[place]["more"] = hostile
    if place == "bare pickle":
        file.write_bytes(pickle.dumps(hostile))
    else:
        torch.save(hostile if place == "top" else content | {"more": hostile}, file)
    if place == "bin":
        (made / "model.safetensors").unlink()
        file.rename(made / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="damaged, or holds more than tensors .*only tensors are read") as error:
        load(made, pooling="mean", similarity="dot") if place == "bin" else reference.read(file)
    assert not mark.exists()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300
    if place != "bare pickle":
        assert ("argparse.Namespace" if place == "bin" else "posix.system") in str(error.value)
    with open(file if place != "bin" else made / "pytorch_model.bin", "rb") as stream:  # the trap does spring elsewhere
        if place == "bare pickle":
            pickle.load(stream)  # the test's own, and all it does is to touch a file
            assert mark.exists()


def test_a_namespace_may_stand_nowhere_but_in_a_reference_checkpoint(made: Path) -> None:
    torch.save({"a": argparse.Namespace(b=1)}, made / "pytorch_model.bin")
    (made / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="argparse"):
        load(made, pooling="mean", similarity="dot")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": {}}, "expected a dict with weights by name under 'model'"),
        ({"model": {}}, "expected a dict with weights by name under 'model'"),
        ([1, 2], "expected a dict with weights by name under 'model'"),
        ({"model": {"conv1.weight": torch.zeros(1)}}, r"\(conv1\.weight …\) are of no known layout; known: moco"),
        ({"model": {"encoder_q.a": torch.zeros(1)}, "opt": argparse.Namespace()}, "does not say which model it began"),
        ({"model": {"encoder_q.a": torch.zeros(1)}, "opt": {"pooling": "max"}}, "pooling 'max' cannot be loaded"),
    ],
)
def test_another_programs_file_is_refused(content: object, message: str, made: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    torch.save(content, tmp_path / "run/checkpoint.pth")
    with pytest.raises(CheckpointError, match=message):
        main(
            [
                "adopt",
                str(tmp_path / "run"),
                str(tmp_path / "ours"),
                "--tokenizer",
                str(made) if "max" in message else "",
            ]
        )
    assert not (tmp_path / "ours").exists()


def test_a_wrong_beginning_missing_rules_and_loading_are_told(made: Path, tiny: Callable[..., Path]) -> None:
    folder = made.parent
    torch.save(state(made, "moco"), folder / "checkpoint.pth")
    with pytest.raises(CheckpointError, match=r"a checkpoint of training, not of a model; .* mcontriever adopt"):
        load(folder / "checkpoint.pth")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pth, as .*other: embeddings\.\w+\.weight has shape"):
        main(["adopt", str(folder / "checkpoint.pth"), str(folder / "ours"), "--tokenizer", str(tiny("other"))])
    content = state(made, "moco")
    del content["opt"].pooling
    torch.save(content, folder / "checkpoint.pth")
    with pytest.raises(CheckpointError, match=r"give load\(…, pooling="):
        main(["adopt", str(folder / "checkpoint.pth"), str(folder / "ours"), "--tokenizer", str(made)])


def test_a_truncated_one_is_damaged(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pth"
    torch.save(state(made, "moco"), file)
    assert zipfile.is_zipfile(file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        reference.read(file)
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="damaged"):
        reference.read(file)
