"""What a step's arithmetic is counted as, and that the measured peak is the rate of something real."""

import pytest
import torch

from mcontriever import encoder
from mcontriever.pairs import Packed, PairBatch
from mcontriever.training import peak


def packed(*lengths):
    return Packed(torch.zeros(sum(lengths), dtype=torch.long), torch.tensor(lengths))


def test_queries_cost_three_passes_and_keys_one(monkeypatch):
    monkeypatch.setattr(encoder, "flops", lambda config, lengths: config * float(sum(n * n for n in lengths)))
    batch = PairBatch(packed(1, 2), packed(3, 4), torch.arange(2), torch.zeros(2, dtype=torch.long), ("en",))
    query, passage = 10 * (1 + 4), 10 * (9 + 16)
    assert peak.work_of(10, "moco")(batch) == 3 * query + passage
    assert peak.work_of(10, "in_batch")(batch) == 3 * (query + passage)


def test_the_peak_is_the_fastest_product_that_was_timed(monkeypatch):
    seconds = {256: 1.0, 512: 4.0, 1024: 40.0}  # 512 is the most efficient of them
    monkeypatch.setattr(peak, "_timed", lambda left, right, product: seconds[len(left)])
    monkeypatch.setattr(peak, "_LARGEST", {"cpu": 1024})
    assert peak.measure(torch.device("cpu"), "fp32", seconds=1e9) == 2 * 512**3 / 4.0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_measuring_takes_nothing_from_anybody_elses_random_numbers(precision):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert peak.measure(torch.device("cpu"), precision, seconds=0.01) > 1e7
    assert torch.equal(torch.get_rng_state(), before)
