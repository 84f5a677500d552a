import pytest

from mcontriever.errors import SettingsError
from mcontriever.training.schedule import OptimSettings, learning_rate


def test_rises_to_the_peak_and_falls_to_the_final_share():
    optim = OptimSettings(lr=1.0, warmup=4, final=0.1)
    rates = [learning_rate(optim, step, 10) for step in range(10)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4:] == pytest.approx([0.1 + 0.9 * left / 6 for left in (5, 4, 3, 2, 1, 0)])


def test_warm_up_longer_than_the_run_never_reaches_the_peak_early():
    assert learning_rate(OptimSettings(lr=1.0, warmup=100), 0, 5) == pytest.approx(0.2)


@pytest.mark.parametrize(("name", "value"), [("lr", 0.0), ("beta2", 1.0), ("weight_decay", -0.1), ("eps", 0.0)])
def test_out_of_range_names_the_setting(name, value):
    with pytest.raises(SettingsError, match=f"optim.{name} must lie in"):
        OptimSettings(**{name: value})
