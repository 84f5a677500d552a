"""Train states on disk: which is resumed from, which are kept, and what happens where there is no room."""

import collections

import pytest
import torch

from mcontriever import artifact
from mcontriever.errors import ArtifactError
from mcontriever.training import state

TENSORS = {"weights": {"w": torch.arange(4.0)}, "exp_avg": {}}
Usage = collections.namedtuple("Usage", "total used free")


def save(folder, step, keep=2, best="", **measures):
    state.save(folder, step, TENSORS, {"best": best, "measures": measures}, keep, best=best)


def steps(folder):
    return sorted(step for step, _ in state.states(folder))


def test_a_state_comes_back_as_it_was_with_what_lies_beside_it(tmp_path):
    def beside(folder):
        (folder / "contract.json").write_text("{}")

    state.save(tmp_path, 3, TENSORS, {"fact": 1}, 2, beside=beside)
    path, complaints = state.newest(tmp_path)
    tensors, meta = state.load(path)
    assert (path, complaints) == (tmp_path / "state-00000003", [])
    assert list(tensors) == ["weights"]
    assert torch.equal(tensors["weights"]["w"], TENSORS["weights"]["w"])
    assert meta == {"fact": 1, "step": 3}
    assert (path / state.BESIDE / "contract.json").is_file()


def test_the_last_few_are_kept_and_the_best_one_besides(tmp_path):
    for step, value in enumerate([0.3, 0.9, 0.5, 0.9, 0.1], start=1):
        save(tmp_path, step, best="MRR@10 en", **{"MRR@10 en": value})
    assert steps(tmp_path) == [2, 4, 5]
    assert state.best_of(tmp_path, "MRR@10 en") == tmp_path / "state-00000002", "the earlier of two as good"
    assert state.best_of(tmp_path, "another") is None


def test_of_losses_the_lowest_is_best_and_a_state_without_a_measure_is_not(tmp_path):
    for step, loss in enumerate([3.0, 1.0, 2.0], start=1):
        save(tmp_path, step, keep=1, best="loss", loss=loss)
    save(tmp_path, 4, keep=1, best="loss")
    assert steps(tmp_path) == [2, 4]


@pytest.mark.parametrize("harm", ["flip", "truncate", "no manifest", "empty manifest", "half a manifest", "no file"])
def test_what_does_not_verify_is_named_and_passed_over(tmp_path, harm):
    save(tmp_path, 1)
    save(tmp_path, 2)
    broken = tmp_path / "state-00000002"
    manifest, weights = broken / artifact.MANIFEST, broken / "weights.safetensors"
    content = weights.read_bytes()
    if harm == "flip":
        weights.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif harm == "truncate":
        weights.write_bytes(content[:-5])
    elif harm == "no file":
        weights.unlink()
    elif harm == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("" if harm == "empty manifest" else manifest.read_text()[:30])
    path, complaints = state.newest(tmp_path)
    assert path == tmp_path / "state-00000001"
    assert len(complaints) == 1
    assert complaints[0].startswith("not resuming from state-00000002: ")
    save(tmp_path, 2)  # reached again, the damaged one is replaced
    assert state.newest(tmp_path) == (broken, [])


def test_a_damaged_newer_state_does_not_push_out_a_good_one(tmp_path):
    save(tmp_path, 4)
    save(tmp_path, 6)
    (tmp_path / "state-00000006" / "weights.safetensors").write_bytes(b"")
    save(tmp_path, 5, keep=2)
    assert steps(tmp_path) == [4, 5, 6]
    assert state.newest(tmp_path)[0] == tmp_path / "state-00000005"


def test_where_no_state_is_whole_nobody_begins_anew_unasked(tmp_path):
    assert state.newest(tmp_path) == (None, [])
    save(tmp_path, 1)
    (tmp_path / "state-00000001" / artifact.MANIFEST).unlink()
    with pytest.raises(ArtifactError, match=r"no train state is whole .*; bring one back, or remove them to begin"):
        state.newest(tmp_path)


def test_a_full_disk_is_seen_before_the_write_and_the_state_before_it_stays(tmp_path, monkeypatch):
    save(tmp_path, 1, keep=1)
    monkeypatch.setattr(state.shutil, "disk_usage", lambda path: Usage(100, 85, 15))
    with pytest.raises(ArtifactError, match=r"step 2 could not be saved.*needs 0.0 MB of disk.*it is intact"):
        save(tmp_path, 2, keep=1)
    assert state.newest(tmp_path) == (tmp_path / "state-00000001", [])
    assert [path.name for path in tmp_path.iterdir()] == ["state-00000001"]


def test_a_disk_that_fills_up_during_the_write_leaves_the_state_before_it(tmp_path, monkeypatch):
    save(tmp_path, 1, keep=1)

    def full(path, tensors):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(artifact, "save_tensors", full)
    with pytest.raises(ArtifactError, match=r"step 2 could not be saved: .*No space left on device.*is intact"):
        save(tmp_path, 2, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["state-00000001"]


def test_room_is_asked_of_the_disk_that_a_folder_will_be_on(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(state.shutil, "disk_usage", lambda path: asked.append(path) or Usage(0, 0, 5 * 10**8))
    state.require_space(tmp_path / "not" / "there", 4 * 10**8, "a thing")
    assert asked == [tmp_path]
    with pytest.raises(ArtifactError, match=r"a thing needs 0.6 GB of disk, 0.5 GB are free; make room"):
        state.require_space(tmp_path, 6 * 10**8, "a thing")
