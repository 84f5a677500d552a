"""Who owns a number, and what is refused: DeepSpeed itself takes a misspelt top-level key without a word."""

import json
import pathlib

import pytest

from mcontriever.errors import SettingsError
from mcontriever.pairs import UnlabelledSettings
from mcontriever.training import BatchSettings, TrainSettings, ds_config
from mcontriever.training.schedule import OptimSettings

SHIPPED = sorted((pathlib.Path(__file__).parents[2] / "ds_configs").glob("*.json"))


def recipe(**changes):
    given = {
        "output": "o",
        "unlabelled": UnlabelledSettings(shards="s"),
        "batch": BatchSettings(size=48, accumulation=2),
        "optim": OptimSettings(clip=0.7),
        "precision": "bf16",
    }
    return TrainSettings(**(given | changes))


def written(tmp_path, content):
    path = tmp_path / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_every_stage_is_shipped():
    assert [path.stem for path in SHIPPED] == ["zero0", "zero1", "zero2", "zero2_offload", "zero3"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_take_every_number_from_the_recipe(path):
    joined = ds_config.join(ds_config.read(path), recipe(), world_size=4)
    assert joined["train_batch_size"] == 48
    assert joined["train_micro_batch_size_per_gpu"] == 6
    assert joined["gradient_accumulation_steps"] == 2
    assert joined["gradient_clipping"] == 0.7
    assert joined["bf16"] == {"enabled": False}, "bf16 is the encoder's own autocast, whatever the engine"
    assert "auto" not in json.dumps(joined)


def test_swapping_the_file_changes_only_where_tensors_live():
    one, three = (
        ds_config.join(ds_config.read(path), recipe(), 2) for path in SHIPPED if path.stem in ("zero1", "zero3")
    )
    assert one.pop("zero_optimization") != three.pop("zero_optimization")
    assert one == three


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"zero_optimisation": {"stage": 1}}, "unknown key zero_optimisation; did you mean 'zero_optimization'"),
        ({"zero_optimization": {"stge": 1}}, "unknown key zero_optimization.stge; did you mean 'stage'"),
        ({"gradient_cliping": "auto"}, "did you mean 'gradient_clipping'"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"devise": "cpu"}}},
            "unknown key zero_optimization.offload_optimizer.devise; did you mean 'device'",
        ),
        ({"gradient_clipping": 1.0}, "gradient_clipping belongs to the recipe .optim.clip."),
        ({"bf16": {"enabled": True}}, "bf16 belongs to the recipe .precision."),
        ({"optimizer": {"type": "AdamW"}}, "optimizer belongs to the recipe"),
        ({"zero_optimization": {"stage": True}}, "stage must be a whole number, got true"),
        ({"zero_optimization": {"stage": 4}}, "stage must be 0, 1, 2 or 3, got 4"),
        ({"zero_optimization": 1}, "zero_optimization must be an object"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "offload_param needs stage 3"),
        (
            {"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}},
            "offload_optimizer needs stage 1",
        ),
        ({"zero_optimization": {"reduce_bucket_size": "big"}}, 'reduce_bucket_size must be a whole number, got "big"'),
        ('{"steps_per_print": Infinity}', "steps_per_print must be a whole number, got Infinity"),
        ({"zero_optimization": {"reduce_bucket_size": 1.5}}, "reduce_bucket_size must be a whole number, got 1.5"),
        ({"zero_optimization": {"overlap_comm": 1}}, "overlap_comm must be true or false, got 1"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "gpu"}}},
            'offload_optimizer.device must be one of cpu, none, got "gpu"',
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/disk"}}},
            'offload_param.device must be one of cpu, none, got "nvme"',
        ),
        ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8}}, "unknown key .*zero_hpz_partition_size"),
        ({"communication_data_type": "bf61"}, 'communication_data_type must be one of bf16, fp16, fp32, got "bf61"'),
        ({"steps_per_print": True}, "steps_per_print must be a whole number, got true"),
        ('{"zero_optimization": {}, "zero_optimization": {}}', "'zero_optimization' stands twice"),
        ('{"zero_optimization": ', "not valid JSON"),
        ("[1]", "must hold a JSON object"),
    ],
)
def test_refused_with_the_file_and_the_mend(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(SettingsError, match=message) as caught:
        ds_config.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named():
    with pytest.raises(SettingsError, match="nowhere.json: cannot be read"):
        ds_config.read("nowhere.json")


def test_a_batch_the_ranks_cannot_share_is_refused():
    with pytest.raises(SettingsError, match="batch.size 48 must be a multiple of batch.accumulation 2 x 5 ranks"):
        ds_config.join({}, recipe(), 5)
