from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import mcontriever
from mcontriever import artifact
from mcontriever.encoder import Encoder, load, save
from mcontriever.errors import ArtifactError, UsageError


def test_what_is_saved_is_loaded(encoder: Encoder, ours: Path, texts: list[str]) -> None:
    loaded = mcontriever.load(ours, device="cpu")
    assert loaded.contract == encoder.contract
    assert loaded.source == str(ours)
    assert not loaded.training
    np.testing.assert_array_equal(loaded.encode_queries(texts), encoder.encode_queries(texts))
    assert (ours / "recipe.toml").read_text() == "seed = 1\n"
    assert artifact.open_artifact(ours, "checkpoint").meta == {"architecture": "xlm-roberta", "steps": 7}


def test_the_same_encoder_gives_the_same_bytes(encoder: Encoder, tmp_path: Path) -> None:
    first, second = (save(encoder, tmp_path / name) for name in ("a", "b"))
    prints = {artifact.open_artifact(path, "checkpoint").fingerprint for path in (first, second)}
    assert len(prints) == 1


def test_a_loaded_checkpoint_is_saved_as_it_was(ours: Path, tmp_path: Path) -> None:
    again = save(load(ours, device="cpu"), tmp_path / "again")
    for name in ("model.safetensors", "config.json", "contract.json"):
        assert (again / name).read_bytes() == (ours / name).read_bytes(), name


def test_transformers_reads_our_folder_to_the_same_vectors(encoder: Encoder, ours: Path, texts: list[str]) -> None:
    model = AutoModel.from_pretrained(ours).eval()
    batch = AutoTokenizer.from_pretrained(ours)(
        texts, padding=True, truncation=True, max_length=64, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    expected = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    np.testing.assert_allclose(encoder.encode_queries(texts), expected, atol=1e-5)


def test_weights_may_come_from_elsewhere(encoder: Encoder, tmp_path: Path) -> None:
    masters = {name: tensor + 1 for name, tensor in encoder.state_dict().items()}
    loaded = load(save(encoder, tmp_path / "a", weights=masters), device="cpu")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, masters[name])
    masters.pop("model.embeddings.LayerNorm.bias")
    with pytest.raises(ValueError, match=r"embeddings\.LayerNorm\.bias"):
        save(encoder, tmp_path / "b", weights=masters)
    assert not (tmp_path / "b").exists()


def test_an_existing_folder_is_kept_unless_told(encoder: Encoder, ours: Path) -> None:
    with pytest.raises(ArtifactError, match="exists already"):
        save(encoder, ours)
    save(encoder, ours, overwrite=True)
    assert not (ours / "recipe.toml").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "contract.json", "recipe.toml"])
@pytest.mark.parametrize("harm", ["remove", "truncate", "flip"])
def test_harm_to_any_file_is_found(ours: Path, name: str, harm: str) -> None:
    content = bytearray((ours / name).read_bytes())
    if harm == "remove":
        (ours / name).unlink()
    elif harm == "truncate":
        (ours / name).write_bytes(content[:-3])
    else:
        content[len(content) // 2] ^= 1
        (ours / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=name) as error:
        load(ours)
    assert "\n" not in str(error.value)


def test_a_folder_without_its_manifest_is_not_whole(ours: Path) -> None:
    (ours / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        load(ours)


def test_a_contract_is_not_overridden(ours: Path) -> None:
    with pytest.raises(UsageError, match="leave out pooling"):
        load(ours, pooling="cls")


def test_precision_is_checked(ours: Path) -> None:
    assert load(ours, precision="fp16").precision == "fp16"
    with pytest.raises(UsageError, match="fp32, bf16, fp16, int8"):
        load(ours, precision="fp8")
