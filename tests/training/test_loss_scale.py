"""fp16's loss scale: what it does at an overflow, and that the plain engine changes nothing then."""

import copy
import math

import pytest
import torch
from torch import nn

from mcontriever.errors import ArtifactError
from mcontriever.training.engine import start_engine
from mcontriever.training.loss_scale import LossScale
from mcontriever.training.schedule import OptimSettings

OPTIM = OptimSettings(lr=0.1, clip=1.0)


def test_halved_at_an_overflow_and_doubled_after_long_calm(capsys):
    scale = LossScale()
    assert scale.observe(math.inf) == 0.0
    assert "overflowed fp16 at loss scale 65536: step skipped, 1 so far" in capsys.readouterr().err
    assert (scale.value, scale.skipped) == (LossScale.FIRST / 2, 1)
    for _ in range(LossScale.PATIENCE - 1):
        assert scale.observe(2.5) == 2.5
    assert scale.value == LossScale.FIRST / 2
    scale.observe(2.5)
    assert (scale.value, scale.skipped) == (LossScale.FIRST, 1)


def test_an_overflow_of_a_loss_as_it_is_is_told():
    scale = LossScale()
    told = [scale.observe(math.nan) for _ in range(18)]
    assert told[:16] == [0.0] * 16
    assert math.isnan(told[16])
    assert scale.value == 1.0


def test_comes_back_from_its_state_and_misses_it():
    scale, other = LossScale(), LossScale()
    for norm in (math.inf, 1.0, 1.0):
        scale.observe(norm)
    other.load_state(scale.state())
    assert vars(other) == vars(scale)
    with pytest.raises(ArtifactError, match="no loss scale"):
        other.load_state({})


def walk(precision, losses):
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    engine = start_engine(module, OPTIM, accumulation=1, deepspeed=None, precision=precision)
    norms = []
    for factor in losses:
        engine.backward((module(torch.ones(2, 3)) ** 2).mean() * factor, last=True)
        norms.append(engine.step(0.1))
    return engine, norms


def test_scaled_steps_are_the_unscaled_ones_bit_for_bit():
    plain, scaled = walk("fp32", [1.0, 2.0, 3.0]), walk("fp16", [1.0, 2.0, 3.0])
    assert plain[1] == scaled[1]
    for name, value in plain[0].state()["weights"].items():
        assert torch.equal(value, scaled[0].state()["weights"][name])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_gradient_that_is_not_finite_changes_nothing(precision):
    before, _ = walk(precision, [1.0])
    after, norms = walk(precision, [1.0, math.inf])
    assert norms[1] == 0.0 if precision == "fp16" else not math.isfinite(norms[1])
    one, other = before.state(), after.state()
    for part in ("weights", "exp_avg", "exp_avg_sq"):
        assert all(torch.equal(other[part][name], value) for name, value in one[part].items())


def test_a_resumed_run_counts_updates_not_steps():
    """Adam's bias correction must not see the skipped step, however the run goes on."""
    uninterrupted, _ = walk("fp16", [math.inf, 1.0, 2.0])
    stopped, _ = walk("fp16", [math.inf])
    saved = copy.deepcopy(stopped.state())
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    engine = start_engine(module, OPTIM, accumulation=1, deepspeed=None, precision="fp16")
    engine.load_state(saved, 1)
    for factor in (1.0, 2.0):
        engine.backward((module(torch.ones(2, 3)) ** 2).mean() * factor, last=True)
        engine.step(0.1)
    assert engine.scale.value == uninterrupted.scale.value == LossScale.FIRST / 2
    for part, values in uninterrupted.state().items():
        assert all(torch.equal(engine.state()[part][name], value) for name, value in values.items())
