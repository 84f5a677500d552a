"""What two starts of one run may differ in, and what a newer version makes of an older run."""

from pathlib import Path

import pytest

from mcontriever.errors import SettingsError
from mcontriever.training.experiment import identity, require_same


def test_a_setting_of_later_times_counts_as_its_default(shards, recipe, tmp_path):
    now = identity(recipe(shards, tmp_path))
    before = identity(recipe(shards, tmp_path))
    del before["objective"]["label_smoothing"], before["batch"]["tokens"]
    require_same(Path("state"), before, now)

    now["objective"]["label_smoothing"] = 0.1
    with pytest.raises(SettingsError, match=r"label_smoothing = 0.0, it is 0.1 now"):
        require_same(Path("state"), before, now)


def test_a_whole_group_of_later_times_counts_as_its_defaults(shards, recipe, tmp_path):
    now, before = (identity(recipe(shards, tmp_path)) for _ in range(2))
    del before["batch"]
    with pytest.raises(SettingsError, match=r"batch.\w+ = "):
        require_same(Path("state"), before, now)  # the fixture's batch is not the default
    now["batch"] = {"size": 2048, "accumulation": 1, "tokens": 0}
    require_same(Path("state"), before, now)
