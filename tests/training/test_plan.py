"""--plan against closed forms, against the encoder it speaks of, and as a user meets it.

What lies where in a real run, engine by engine, is held in tests/distributed/test_plan_measured.py.
"""

import dataclasses
import json
import math
import pathlib

import pytest
import torch
from transformers import XLMRobertaConfig

from mcontriever import train
from mcontriever.corpus import Tokenizer
from mcontriever.encoder import Contract, Encoder, ModelSettings
from mcontriever.errors import SettingsError
from mcontriever.objectives import ObjectiveSettings
from mcontriever.pairs import Packed
from mcontriever.training import BatchSettings, TrainSettings, footprint
from mcontriever.training.memory import Placement
from mcontriever.training.model_shape import ModelShape, config_of
from mcontriever.training.plan import Plan
from mcontriever.training.settings import PlanSettings
from mcontriever.training.traffic import messages

CONFIGS = pathlib.Path(__file__).parents[2] / "ds_configs"
SHAPE = ModelSettings(layers=2, hidden=32, heads=2, intermediate=64, max_positions=40)


def planning(gpus, **changes):
    return PlanSettings(gpus=gpus, vocabulary=100, **changes)


def recipe(**changes):
    given = {"plan": True, "model": SHAPE, "planning": planning(4), "batch": BatchSettings(size=64)}
    return TrainSettings(**(given | changes))


def static(plan):
    """All parts but those that are measured."""
    settings, config = plan.recipe.objective, plan.shape.config
    keys = plan.placement.key_parts(plan.shape, settings.queue_size, config.hidden_size)
    return plan.placement.model_parts(plan.shape) + keys


def part(plan, name):
    return sum(found.bytes for found in static(plan) if found.name == name)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("xlm-roberta-base", 277.5), ("FacebookAI/xlm-roberta-large", 558.8), ("facebook/xlm-roberta-xl", 3475.9)],
)
def test_known_models_have_the_weights_their_papers_count(name, millions):
    """Without the pooling layer, which nothing here uses."""
    shape = ModelShape.of(config_of(recipe(init=name)))
    assert shape.weights / 1e6 == pytest.approx(millions, abs=0.1)


def test_a_models_shape_is_that_of_the_encoder():
    tokenizer = Tokenizer.train(["some words to make letters of " * 3] * 4, 18)
    encoder = Encoder.random(SHAPE, tokenizer)
    shape = ModelShape.of(config_of(recipe(planning=PlanSettings(vocabulary=tokenizer.vocab_size))))
    assert shape.sizes == tuple(weight.numel() for weight in encoder.parameters())


def test_a_folder_is_asked_for_its_shape(tmp_path):
    config = XLMRobertaConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=3, vocab_size=99)
    config.to_json_file(tmp_path / "config.json")
    assert config_of(recipe(init=str(tmp_path))).hidden_size == 48


def test_an_unknown_name_is_told_so():
    with pytest.raises(SettingsError, match="did you mean 'xlm-roberta-base'"):
        config_of(recipe(init="xlm-roberta-bas"))


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
def test_more_gpus_leave_less_on_each(stage):
    one, four = (
        Plan.of(recipe(deepspeed_config=str(CONFIGS / f"{stage}.json"), planning=planning(gpus))) for gpus in (1, 4)
    )
    assert part(four, "moments") == pytest.approx(part(one, "moments") / 4, rel=0.01)
    assert part(four, "weights") == pytest.approx(part(one, "weights") / (4 if stage == "zero3" else 1), rel=0.01)
    assert part(four, "key encoder") == pytest.approx(
        part(one, "key encoder") / (4 if stage == "zero3" else 1), rel=0.01
    )


def test_offload_moves_what_it_says_to_the_machine():
    parts = static(Plan.of(recipe(deepspeed_config=str(CONFIGS / "zero2_offload.json"))))
    assert {found.name for found in parts if found.host} == {"master weights", "moments", "gradients"}


def test_the_queue_in_memory_and_in_steps():
    settings = ObjectiveSettings(queue_size=640)
    plan = Plan.of(recipe(objective=settings))
    assert part(plan, "queue") == 640 * (32 * 4 + 8)
    said = plan.lines()
    assert any("those of 10.0 steps" in line for line in said)
    without = Plan.of(recipe(objective=ObjectiveSettings(kind="in_batch"))).lines()
    assert [sum("queue" in line.lower() or "key" in line for line in lines) for lines in (said, without)] == [4, 0]


def sent(stage, world, **given):
    shape = ModelShape.of(config_of(recipe()))
    content = None if stage is None else {"zero_optimization": {"stage": stage}}
    given = {"moco": True, "rows": 16, "micro_batches": 1} | given
    found = messages(shape, Placement.of(content, world), **given)
    return shape.weights, {message.name: message.bytes for message in found}


@pytest.mark.parametrize("stage", [None, 0, 1, 2])
def test_below_stage_3_a_step_sends_the_weights_twice(stage):
    """By rings: all-reduce is reduce-scatter and all-gather, whoever calls it."""
    weights, found = sent(stage, 4)
    keys = found.pop("all-gather of keys")
    assert keys == 3 * 16 * (32 * 4 + 8)
    assert sum(found.values()) == pytest.approx(2 * 4 * weights * 3 / 4)


def test_stage_3_gathers_weights_twice_and_keys_once_for_each_micro_batch():
    weights, found = sent(3, 4, micro_batches=5)
    assert found["all-gather of weights"] == pytest.approx(10 * 4 * weights * 3 / 4)
    assert found["all-gather of key encoder"] == pytest.approx(5 * 4 * weights * 3 / 4)
    assert found["reduce-scatter of gradients"] == pytest.approx(5 * 4 * weights * 3 / 4)


def test_one_gpu_sends_nothing():
    assert sent(1, 1)[1] == {}


def test_time_is_arithmetic_over_speed_and_bytes_over_the_network():
    given = planning(4, tflops=2.0, tokens=10)
    plan = Plan.of(recipe(planning=given, steps=1000))
    config, rows, length = plan.shape.config, 16, 10
    per_token = config.num_hidden_layers * (8 * 32 * 32 + 4 * 32 * 64)
    attention = config.num_hidden_layers * 4 * length * 32
    forward = rows * length * (per_token + attention)
    scores = 6 * rows * (recipe().objective.queue_size + 1) * 32
    assert plan.operations() == pytest.approx(4 * forward + scores, rel=1e-6)  # queries three times, keys once
    weights = 4 * plan.shape.weights
    assert plan.seconds() == {
        "arithmetic": pytest.approx(plan.operations() / 2e12),
        "sending": pytest.approx(sum(m.bytes for m in plan.traffic()) / 25e9),
        "updating": pytest.approx(13 * weights / 1.5e12),  # AdamW with its clipping, and the key encoder
    }
    told = sum(plan.seconds().values()) * 1000 / 86_400
    assert any(line.startswith("Time: at least") and f"{told:,.1f} days for 1,000" in line for line in plan.lines())
    alone = Plan.of(recipe(planning=dataclasses.replace(given, gbytes=0.0)))
    assert alone.seconds()["sending"] == 0
    assert any("sending not counted" in line for line in alone.lines())


@pytest.mark.parametrize(("stage", "passes"), [("zero1", 10 / 4 + 3), ("zero3", 13 / 4), ("zero2_offload", 3)])
def test_an_update_moves_what_lies_on_the_gpu(stage, passes):
    plan = Plan.of(recipe(deepspeed_config=str(CONFIGS / f"{stage}.json")))
    assert plan.seconds()["updating"] == pytest.approx(passes * 4 * plan.shape.weights / 1.5e12, rel=0.01)
    assert ("on the machine not counted" in " ".join(plan.lines())) == (stage == "zero2_offload")


@pytest.mark.parametrize("buffers", [0, 10_000_000])
def test_what_is_needed_is_the_larger_of_a_step_and_the_start(buffers, tmp_path, monkeypatch):
    """Sharded, a rank holds all weights before it holds a share of them."""
    content = {"stage": 3, "reduce_bucket_size": buffers, "stage3_max_live_parameters": 0}
    content |= {"stage3_max_reuse_distance": 0, "stage3_param_persistence_threshold": 0}
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": content}))
    monkeypatch.setattr(Plan, "memory", lambda plan: static(plan))
    shape = ModelSettings(layers=40, hidden=32, heads=2, intermediate=64, max_positions=40)
    plan = Plan.of(recipe(model=shape, planning=planning(64), deepspeed_config=str(tmp_path / "zero.json")))
    start = 4 * plan.shape.weights + part(plan, "key encoder") + part(plan, "queue")
    total = sum(found.bytes for found in static(plan))
    assert (total > start) == bool(buffers)
    last = [line for line in plan.lines() if line.startswith("  needed")]
    assert [line.split()[-1] for line in last] == [f"{max(total, start) / 2**30:.3f}"]


@pytest.mark.parametrize(("gpus", "nearest"), [(48, "32 or 64"), (3, "2 or 4"), (65, "64"), (200, "64")])
def test_a_number_of_gpus_that_does_not_divide_names_those_that_do(gpus, nearest):
    with pytest.raises(SettingsError, match=rf"batch.size 64 must be .* or take {nearest} ranks"):
        BatchSettings(size=64).rows_per_rank(gpus)


def test_a_token_budget_cuts_steps():
    plan = Plan.of(recipe(batch=BatchSettings(size=64, tokens=600), planning=planning(1, tokens=30)))
    assert plan.work.micro_batches == math.ceil(64 * 60 / 600)
    assert plan.work.at_once == 10


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_of_a_narrow_copy_tell_those_of_the_model(precision, checkpointing):
    """Four layers, twice as wide as what the estimate runs: within 5 % of the tensors really alive."""
    settings = ModelSettings(layers=4, hidden=128, heads=4, intermediate=512, max_positions=66, dropout=0.1)
    tokenizer = Tokenizer.train(["some words to make letters of " * 3] * 4, 18)
    encoder = Encoder.random(settings, tokenizer).train()
    encoder.precision = precision
    encoder.checkpoint_activations(checkpointing)
    peaks = []
    for rows in (50, 70):  # so many that the peak is not at the end of the backward pass, among the gradients
        packed = Packed.of([[7] * 50] * rows)
        with footprint.LiveBytes(encoder.parameters()) as live:
            encoder(packed).sum().backward()
        peaks.append(live.most)
        encoder.zero_grad(set_to_none=True)
    expected = footprint.bytes_per_token(encoder.config, precision, checkpointing=checkpointing)
    assert (peaks[1] - peaks[0]) / (20 * 50) == pytest.approx(expected, rel=0.05)


def test_live_bytes_counts_what_is_alive_and_the_most_that_was():
    outside = torch.zeros(1000)
    with footprint.LiveBytes([outside]) as live:
        kept = torch.zeros(100)
        again = kept[10:]  # the same memory
        outside.add_(1)
        (kept + 1).sum()
        del again
    assert live.now == 400
    assert 800 <= live.most <= 804


def test_the_contract_of_the_stand_in_needs_no_text():
    config = config_of(recipe())
    assert isinstance(footprint._stand_in(config, "fp32").contract, Contract)


def test_a_user_is_told_on_standard_output_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train.main(["--recipe", "pretrain", "--plan", "--planning.gpus", "32"])
    said = capsys.readouterr().out
    for words in (
        "277.5 M weights",
        "32 GPUs",
        "key encoder",
        "16.0 steps",
        "all-reduce of gradients",
        "days for 500,000",
    ):
        assert words in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": BatchSettings(size=10)}, "batch.size 10 must be a multiple of"),
        ({"deepspeed_config": "nowhere.json"}, "nowhere.json: cannot be read"),
    ],
)
def test_what_training_would_refuse_the_plan_refuses(changes, message):
    with pytest.raises(SettingsError, match=message):
        Plan.of(recipe(**changes))


@pytest.mark.parametrize(
    "changes", [{"gpus": -1}, {"tflops": 0.0}, {"tokens": -1.0}, {"vocabulary": 0}, {"memory_gbytes": 0.0}]
)
def test_planning_is_checked(changes):
    with pytest.raises(SettingsError, match="planning."):
        PlanSettings(**changes)
