"""A step cut any way is the step uncut: micro-batches, token budgets, the gradient cache; and what MoCo remembers."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mcontriever.corpus import Tokenizer
from mcontriever.encoder import Encoder, ModelSettings
from mcontriever.errors import SettingsError
from mcontriever.objectives import KeyQueue, MomentumEncoder, ObjectiveSettings, info_nce
from mcontriever.pairs import LabelledSettings, Packed, PairBatch, UnlabelledSettings
from mcontriever.training import BatchSettings, TrainSettings
from mcontriever.training.engine import PlainEngine
from mcontriever.training.micro_batches import cut
from mcontriever.training.schedule import OptimSettings
from mcontriever.training.step import InBatch, Moco, train_step

WORDS = "river mountain lake bridge tower garden market harbour castle forest desert island valley meadow".split()
DIMENSION, QUEUE = 16, 11


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))], 40)


def make_batch(rows, seed=0, group=None):
    random = np.random.default_rng(seed)
    sides = [[random.integers(5, 40, random.integers(3, 15)) for _ in range(rows)] for _ in range(2)]
    group = torch.arange(rows) + 1000 * seed if group is None else torch.tensor(group)
    return PairBatch(Packed.of(sides[0]), Packed.of(sides[1]), group, torch.zeros(rows, dtype=torch.long), ("xx",))


def make_encoder(tokenizer, dropout=0.0):
    shape = ModelSettings(layers=1, hidden=DIMENSION, heads=2, intermediate=32, max_positions=40, dropout=dropout)
    return Encoder.random(shape, tokenizer, seed=1).train()


def make_engine(encoder):
    return PlainEngine(copy.deepcopy(encoder), OptimSettings(lr=1e-2, warmup=0), 1)


def softened(temperature, settings):
    """With a temperature, where the loss has one."""
    return settings if settings.get("loss") == "margin" else {"temperature": temperature} | settings


def make_moco(encoder, **settings):
    given = ObjectiveSettings(queue_size=QUEUE, momentum=0.5, **softened(4.0, settings))
    objective = Moco(given, MomentumEncoder(encoder, given.momentum), KeyQueue(QUEUE, DIMENSION))
    objective.queue.enqueue(torch.randn(7, DIMENSION, generator=torch.Generator().manual_seed(3)), torch.arange(7))
    return objective


def gradients(engine, objective, micro_batches, seed=5):
    torch.manual_seed(seed)
    engine.micro_batches(len(micro_batches))
    seen = objective.learn(engine, micro_batches)
    return {name: parameter.grad for name, parameter in engine.module.named_parameters()}, seen


def assert_same(got, want):
    """Over all weights together, to a millionth of their length: what sums in another order differ by."""
    assert got.keys() == want.keys()
    length, apart = (
        math.sqrt(sum(float(value.square().sum()) for value in values))
        for values in (want.values(), [got[name] - value for name, value in want.items()])
    )
    assert length > 0.1, "there must be something to compare"
    assert apart < 1e-6 * length


LOSSES = [
    {},
    {"label_smoothing": 0.1},
    {"loss": "margin", "margin": 3.0},
    {"loss": "margin", "margin_over": "hardest", "margin": 3.0},
]


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_cached_gradients_are_those_of_the_whole_batch(tokenizer, loss):
    encoder, batch = make_encoder(tokenizer), make_batch(10, group=[0, 1, 2, 3, 4, 5, 6, 0, 8, 1])
    settings = ObjectiveSettings(kind="in_batch", gradient_cache=True, **softened(2.0, loss))
    want, whole = gradients(make_engine(encoder), InBatch(settings), [batch])
    for parts in (2, 3, 10):
        got, seen = gradients(make_engine(encoder), InBatch(settings), batch.cut(parts))
        assert_same(got, want)
        torch.testing.assert_close(seen.means, whole.means)
        torch.testing.assert_close(seen.query, whole.query)


def test_without_the_cache_micro_batches_have_other_negatives(tokenizer):
    encoder, batch = make_encoder(tokenizer), make_batch(8)
    plain, cached = (ObjectiveSettings(kind="in_batch", temperature=2.0, gradient_cache=on) for on in (False, True))
    _, apart = gradients(make_engine(encoder), InBatch(plain), batch.cut(4))
    _, together = gradients(make_engine(encoder), InBatch(cached), batch.cut(4))
    assert apart.means[0] < together.means[0] - 0.1, "fewer negatives, a smaller loss"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_cache_drops_out_the_same_twice(tokenizer, precision):
    """The oracle keeps the graphs of all micro-batches and draws its dropout in the same order."""
    encoder, micro_batches = make_encoder(tokenizer, dropout=0.3), make_batch(9).cut(3)
    encoder.precision = precision
    settings = ObjectiveSettings(kind="in_batch", temperature=2.0, gradient_cache=True)
    got, _ = gradients(make_engine(encoder), InBatch(settings), micro_batches)
    after = torch.rand(1)

    oracle = copy.deepcopy(encoder)
    torch.manual_seed(5)
    halves = []
    for batch in micro_batches:
        ids = torch.cat([batch.query.ids, batch.passage.ids])
        vectors = oracle(Packed(ids, torch.cat([batch.query.lengths, batch.passage.lengths])))
        halves.append(vectors.split(len(batch)))
    query, passage = (torch.cat(side) for side in zip(*halves, strict=True))
    info_nce(query, passage, temperature=2.0).loss.backward()
    assert_same(got, {name: parameter.grad for name, parameter in oracle.named_parameters()})
    assert torch.equal(after, torch.rand(1)), "the generator goes on where one pass would have left it"

    other, _ = gradients(make_engine(encoder), InBatch(settings), micro_batches, seed=6)
    assert max((other[name] - got[name]).abs().max() for name in got) > 1e-3, "dropout must be at work"


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_moco_cut_by_tokens_is_the_step_uncut(tokenizer, loss):
    encoder, batch = make_encoder(tokenizer), make_batch(10, seed=1)
    want, whole = gradients(make_engine(encoder), make_moco(encoder, **loss), [batch])
    expected = train_step(make_engine(encoder), queue := make_moco(encoder, **loss), [batch], 1e-2)
    for tokens in (60, 30):
        micro_batches = cut(batch, tokens, "cpu")
        lengths = [int((part.query.lengths + part.passage.lengths).sum()) for part in micro_batches]
        assert max(lengths) <= tokens
        assert sum(lengths) == len(batch.query.ids) + len(batch.passage.ids)
        assert len({len(part) for part in micro_batches}) > 1, "rows must differ, or their weight is not tested"
        got, seen = gradients(make_engine(encoder), make_moco(encoder, **loss), micro_batches)
        assert_same(got, want)
        torch.testing.assert_close(seen.means, whole.means)
        objective = make_moco(encoder, **loss)
        result = train_step(make_engine(encoder), objective, micro_batches, 1e-2)
        for name, value in vars(expected).items():
            assert getattr(result, name) == pytest.approx(value, rel=1e-5, abs=1e-6), name
        torch.testing.assert_close(objective.queue.state_dict(), queue.queue.state_dict())


def test_a_step_tells_what_an_oracle_counts(tokenizer):
    encoder, batch = make_encoder(tokenizer), make_batch(6, seed=2)
    objective, engine = make_moco(encoder), make_engine(encoder)
    with torch.no_grad():
        query, key = encoder(batch.query), encoder(batch.passage)
    result = train_step(engine, objective, cut(batch, 60, "cpu"), 1e-2)
    assert result.query_std == pytest.approx(float(query.std(dim=0, correction=0).mean()), rel=1e-4)
    assert result.key_std == pytest.approx(float(key.std(dim=0, correction=0).mean()), rel=1e-4)
    assert result.query_std != pytest.approx(result.key_std, rel=1e-3)
    sides = [side.lengths.tolist() for side in (batch.query, batch.passage)]
    assert result.tokens == sum(sides[0]) + sum(sides[1])
    assert result.padding == pytest.approx(1 - result.tokens / (6 * max(sides[0]) + 6 * max(sides[1])))
    assert result.positive == pytest.approx(float((query * key).sum(dim=1).mean()), rel=1e-4)


def test_collapse_shows_in_both_deviations(tokenizer):
    encoder = make_encoder(tokenizer)
    with torch.no_grad():
        encoder.model.encoder.layer[0].output.LayerNorm.weight.zero_()  # every token gets the same vector
    for objective in (make_moco(encoder), InBatch(ObjectiveSettings(kind="in_batch"))):
        result = train_step(make_engine(encoder), objective, [make_batch(6)], 1e-2)
        assert (result.query_std, result.key_std) == pytest.approx((0, 0), abs=1e-6)


def test_keys_drop_out_only_if_asked_and_by_the_seed(tokenizer):
    encoder, batch = make_encoder(tokenizer, dropout=0.3), make_batch(6)

    def keys(seed, **settings):
        _, seen = gradients(make_engine(encoder), make_moco(encoder, **settings), [batch], seed)
        return seen.key

    with torch.no_grad():
        still = copy.deepcopy(encoder).eval()(batch.passage)
    assert torch.equal(keys(1), keys(2))
    torch.testing.assert_close(keys(1), still)
    dropped = keys(1, key_dropout=True)
    assert torch.equal(dropped, keys(1, key_dropout=True))
    assert not torch.equal(dropped, keys(2, key_dropout=True))
    assert F.cosine_similarity(dropped, still).min() > 0.3
    assert (dropped - still).abs().max() > 0.1


@pytest.mark.parametrize("rows", [4, 5, 11, 30])
def test_warm_start_fills_the_queue_with_keys_and_takes_no_more_batches_than_it_needs(tokenizer, rows):
    encoder = make_encoder(tokenizer)
    objective = Moco(ObjectiveSettings(queue_size=QUEUE), MomentumEncoder(encoder, 0.9), KeyQueue(QUEUE, DIMENSION))
    taken = []

    def steps():
        for number in range(100):
            taken.append(make_batch(rows, seed=number))
            yield taken[-1].cut(2)

    objective.warm_start(steps())
    assert len(taken) == -(-QUEUE // rows)
    with torch.no_grad():
        keys = torch.cat([copy.deepcopy(encoder).eval()(batch.passage) for batch in taken])
    groups = torch.cat([batch.group for batch in taken])
    assert sorted(objective.queue.groups.tolist()) == sorted(groups[-QUEUE:].tolist())
    for slot, group in enumerate(objective.queue.groups.tolist()):
        torch.testing.assert_close(objective.queue.keys[slot], keys[groups.tolist().index(group)])
    assert not objective.encoder.module.training


def test_a_step_without_numbers_leaves_everything_as_it_was(tokenizer):
    encoder = make_encoder(tokenizer)
    engine, objective = make_engine(encoder), make_moco(encoder)
    with torch.no_grad():
        engine.module.model.embeddings.word_embeddings.weight[20].fill_(torch.nan)
    ids = torch.tensor([20, 21, 22, 23])
    bad = PairBatch(
        Packed(ids, torch.tensor([2, 2])), Packed(ids, torch.tensor([2, 2])), torch.arange(2), torch.zeros(2), ("xx",)
    )
    before = copy.deepcopy((objective.queue.state_dict(), objective.encoder.state_dict()))
    result = train_step(engine, objective, [bad], 1e-2)
    assert math.isnan(result.loss)
    assert not math.isfinite(result.gradient_norm)
    for old, new in zip(before, (objective.queue.state_dict(), objective.encoder.state_dict()), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)


def test_one_pair_alone_has_nothing_to_learn_from(tokenizer):
    encoder = make_encoder(tokenizer)
    engine = make_engine(encoder)
    result = train_step(engine, InBatch(ObjectiveSettings(kind="in_batch")), [make_batch(1)], 0.0)
    assert (result.loss, result.accuracy, result.gradient_norm, result.query_std) == (0.0, 1.0, 0.0, 0.0)


def settings_of(**changes):
    return TrainSettings(output="o", **({"unlabelled": UnlabelledSettings(shards="s")} | changes))


def test_a_pair_longer_than_the_budget_is_refused(tokenizer):
    batch = make_batch(5)
    longest = int((batch.query.lengths + batch.passage.lengths).max())
    assert len(cut(batch, longest, "cpu")) > 1
    with pytest.raises(SettingsError, match=f"batch.tokens is {longest - 1}, but a pair has {longest} tokens"):
        cut(batch, longest - 1, "cpu")
    with pytest.raises(SettingsError, match="batch.tokens is 259, but a pair may have 260 tokens"):
        settings_of(batch=BatchSettings(tokens=259))
    labelled = LabelledSettings(file="f", query_max_length=64, passage_max_length=256)
    with pytest.raises(SettingsError, match="batch.tokens is 319, but a pair may have 320 tokens"):
        settings_of(unlabelled=UnlabelledSettings(), init="i", labelled=labelled, batch=BatchSettings(tokens=319))


def test_a_budget_goes_with_neither_accumulation_nor_uncached_in_batch_negatives():
    with pytest.raises(SettingsError, match="leave batch.accumulation at 1, got 2"):
        BatchSettings(size=8, accumulation=2, tokens=100)
    with pytest.raises(SettingsError, match="turn on objective.gradient_cache"):
        settings_of(batch=BatchSettings(tokens=1000), objective=ObjectiveSettings(kind="in_batch"))
    settings_of(batch=BatchSettings(tokens=1000), objective=ObjectiveSettings(kind="in_batch", gradient_cache=True))
