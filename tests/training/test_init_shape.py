"""With init a model keeps its shape: what [model] asks for besides is a mistake, and no part of the experiment."""

import dataclasses

import pytest

from mcontriever.encoder import ModelSettings
from mcontriever.errors import SettingsError
from mcontriever.training import opening, train
from mcontriever.training.experiment import identity
from mcontriever.training.plan import Plan


@pytest.fixture(scope="module")
def start(recipe, shards, tmp_path_factory):
    return str(train(recipe(shards, tmp_path_factory.mktemp("start") / "run", steps=1)))


def opened(settings):
    return opening.initial_encoder(settings, None)


@pytest.mark.parametrize(("name", "value"), [("layers", 6), ("dropout", 0.2), ("normalise", True)])
def test_a_shape_that_init_does_not_have_is_refused(recipe, shards, tmp_path, start, name, value):
    model = ModelSettings(**{name: value})
    with pytest.raises(SettingsError, match=rf"model\.{name} is {value}, but init \S+ has [\w.]+ and keeps its shape"):
        opened(recipe(shards, tmp_path, init=start, model=model))


def test_the_plan_refuses_it_too(recipe, shards, tmp_path, start):
    with pytest.raises(SettingsError, match=r"model\.hidden is 32, but init \S+ has 16"):
        Plan.of(recipe(shards, tmp_path, init=start, model=ModelSettings(hidden=32), plan=True))


def test_defaults_and_what_init_has_are_taken_and_are_one_experiment(recipe, shards, tmp_path, start):
    own = recipe(shards, tmp_path, init=start)  # the fixture's shape, which is that of `start`
    none = dataclasses.replace(own, model=ModelSettings())
    assert opened(own).config.num_hidden_layers == opened(none).config.num_hidden_layers == 1
    assert identity(own) == identity(none)
    other = dataclasses.replace(own, model=ModelSettings(attention_dropout=0.1))
    assert opened(other).attention_dropout == 0.1
    assert identity(other) != identity(own)
