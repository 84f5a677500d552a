"""An encoder that gives every text the same vector is noticed: in lines made up, and in a run that gets there."""

import pytest

from mcontriever.training import GuardSettings, metrics, train
from mcontriever.training.collapse import Collapse
from mcontriever.training.schedule import OptimSettings


def line(query=0.5, key=0.5, norm=1.0):
    return {"query_std": query, "key_std": key, "gradient_norm": norm}


def test_the_spread_is_compared_with_its_largest_so_far():
    collapse = Collapse(0.1)
    assert [collapse.of(line(query)) for query in (0.2, 1.0, 0.1)] == ["", "", ""]
    assert collapse.of(line(0.09)) == "query_std is 0.090000, it was 1.000000"
    assert collapse.of(line(0.3, 0.01)) == "key_std is 0.010000, it was 0.500000"
    assert collapse.of(line(0.3)) == "", "it came back"


def test_vectors_that_never_differed_have_collapsed():
    assert Collapse(0.1).of(line(0.0)) == "query_std is 0.000000, it was 0.000000"


def test_a_gradient_of_0_must_last():
    collapse = Collapse(0.1)
    told = [bool(collapse.of(line(norm=norm))) for norm in (0.0, 0.0, 1.0, 0.0, 0.0, None, 0.0, 0.0)]
    assert told == [False] * 6 + [True, True], "a line without steps tells nothing"


def test_without_a_share_nothing_is_noticed():
    collapse = Collapse(0.0)
    assert {collapse.of(line(query, norm=0.0)) for query in (1.0, 0.0, 0.0, 0.0)} == {""}


def test_lines_of_earlier_starts_count():
    assert Collapse(0.1, [line(1.0)]).of(line(0.05))
    assert not Collapse(0.1).of(line(0.05))


@pytest.mark.parametrize("share", [0.1, 0.0])
def test_a_rate_far_too_high_is_told_once(recipe, shards, tmp_path, capsys, share):
    optim, guard = OptimSettings(lr=10, warmup=0), GuardSettings(collapse=share)
    train(recipe(shards, tmp_path / "run", steps=60, log_every=5, optim=optim, guard=guard))
    marked = [line["step"] for line in metrics.read(tmp_path / "run" / metrics.NAME) if "collapsed" in line]
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Collapsed at step")]
    assert (len(marked) > 1) == bool(share)
    if share:
        assert f"step {marked[0]}?" in said[0]
    assert len(said) == sum(step - 5 not in marked for step in marked), "once, until it comes back"
