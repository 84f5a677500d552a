"""However a step is cut, over ranks, micro-batches and token budgets, and whoever computes it: one gradient.

One launch of two real processes and one of a single one run all cases. The gradient is read from the optimiser's first
moment after the first step, which every engine gives in full; it is compared by its length, to 1e-6 (measured 4e-7).
"""

import json
import math

import pytest
from launching import launch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

ENGINES = ["plain", "zero0", "zero1", "zero2", "zero2_offload", "zero3"]
CLOSE = 2e-6  # measured 2e-7 (moco), 7e-7 (in_batch, with the cache and without), 1.1e-6 (margin), all fp32 rounding
# cut in some way, over two ranks, and what it must equal: whole, in one process, by the plain engine
CUT = {
    "plain:in_batch": "plain:in_batch",
    **{f"{engine}:cached:tokens": "plain:in_batch" for engine in ENGINES},
    **{f"{engine}:moco:tokens": "plain:moco" for engine in ENGINES},
    "plain:cached:accumulation": "plain:in_batch",
    "zero2:cached:accumulation": "plain:in_batch",
    "zero3:cached:accumulation": "plain:in_batch",
    "zero3:cached": "plain:in_batch",
    "plain:cached:tokens:margin": "plain:in_batch:margin",
    "zero3:moco:tokens:margin": "plain:moco:margin",
    "plain:warm": "plain:warm",
    "zero2:warm:tokens": "plain:warm",
    "zero3:warm:tokens": "plain:warm",
}
# with dropout the same two ranks draw the same, whichever the engine
DROPOUT = {
    **{f"{engine}:cached:tokens:dropout": "plain:cached:tokens:dropout" for engine in ENGINES[1:]},
    **{f"{engine}:key_dropout:tokens:dropout": "plain:key_dropout:tokens:dropout" for engine in ("zero1", "zero3")},
}
ONE_RANK = [*sorted(set(CUT.values())), "plain:cached:tokens", "plain:moco:tokens"]


def start(folder, ranks, cases):
    return launch(folder, "step_worker.py", ranks, ",".join(cases))


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    return start(tmp_path_factory.mktemp("one"), 1, ONE_RANK)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    others = ["plain:in_batch:accumulation", "plain:moco:tokens:dropout"]
    return start(tmp_path_factory.mktemp("two"), 2, [*CUT, *DROPOUT, *set(DROPOUT.values()), *others])


def told(folder, case):
    return json.loads((folder / case.replace(":", "-") / "results.json").read_text())


def tensors(folder, case):
    return load_file(folder / case.replace(":", "-") / "tensors.safetensors")


def gradient(folder, case):
    return {name: value for name, value in tensors(folder, case).items() if name.startswith("model.")}


def distance(left, right):
    """Relative, over all weights together."""
    assert left.keys() == right.keys()
    apart = sum(float((left[name] - right[name]).square().sum()) for name in right)
    return math.sqrt(apart / sum(float(value.square().sum()) for value in right.values()))


def compare(left, right, cuts=True):
    """Results of all steps; the first has seen no update yet, the later ones show that the step was taken alike."""
    for want, have in zip(left["results"], right["results"], strict=True):
        for name, value in want.items():
            assert have[name] == pytest.approx(value, rel=2e-5, abs=2e-5), name
    assert not cuts or left["cuts"] == right["cuts"]


@pytest.mark.parametrize("case", CUT)
def test_a_step_cut_over_two_ranks_is_the_step_whole(case, one_rank, two_ranks):
    assert distance(gradient(two_ranks, case), gradient(one_rank, CUT[case])) < CLOSE
    compare(told(one_rank, CUT[case]), told(two_ranks, case), cuts=False)


@pytest.mark.parametrize("case", ["plain:cached:tokens", "plain:moco:tokens"])
def test_a_step_cut_in_one_process_is_the_step_whole(case, one_rank):
    assert distance(gradient(one_rank, case), gradient(one_rank, CUT[case])) < CLOSE
    compare(told(one_rank, CUT[case]), told(one_rank, case), cuts=False)


def test_ranks_agree_on_the_number_of_micro_batches_but_not_on_their_rows(two_ranks):
    cuts = told(two_ranks, "plain:cached:tokens")["cuts"]  # step by step, rank by rank: rows of each part
    assert all(len(first) == len(second) > 1 for first, second in cuts)
    assert all(sum(first) == sum(second) for first, second in cuts)
    assert any(first != second for first, second in cuts)
    assert len({len(first) for first, _ in cuts}) > 1, "their number must change from step to step"


def test_without_the_cache_micro_batches_are_batches_of_their_own(one_rank, two_ranks):
    assert distance(gradient(two_ranks, "plain:in_batch:accumulation"), gradient(one_rank, "plain:in_batch")) > 0.01


@pytest.mark.parametrize("case", DROPOUT)
def test_every_engine_drops_out_the_same(case, two_ranks):
    assert distance(gradient(two_ranks, case), gradient(two_ranks, DROPOUT[case])) < CLOSE
    compare(told(two_ranks, DROPOUT[case]), told(two_ranks, case))


def test_dropout_is_at_work_on_keys_only_if_asked(two_ranks):
    with_keys, without = (
        told(two_ranks, f"plain:{name}:tokens:dropout")["results"][0] for name in ("key_dropout", "moco")
    )
    assert abs(with_keys["key_std"] - without["key_std"]) > 1e-3


@pytest.mark.parametrize("case", ["plain:warm", "zero2:warm:tokens", "zero3:warm:tokens"])
def test_the_warm_queue_is_the_same_whatever_computes_it(case, one_rank, two_ranks):
    want, have = tensors(one_rank, "plain:warm"), tensors(two_ranks, case)
    assert (want["warm.groups"] >= 0).all()
    for name in ("groups", "pointer"):
        assert want[f"warm.{name}"].tolist() == have[f"warm.{name}"].tolist()
        assert want[f"end.{name}"].tolist() == have[f"end.{name}"].tolist()
    for when in ("warm", "end"):
        keys, others = want[f"{when}.keys"], have[f"{when}.keys"]
        assert float((keys - others).abs().max()) < 1e-4 * float(keys.abs().max())
