"""Vectors in fewer bytes: what comes back, how far off it is, and that bf16 rounds as torch does."""

import numpy as np
import pytest
import torch

from mcontriever.retrieval.rounding import TYPES, relative_errors, restored, rounded


@pytest.fixture
def rows():
    scale = np.logspace(-20, 4, 50)[:, None]
    return (np.random.default_rng(0).standard_normal((50, 24)) * scale).astype(np.float32)


def test_bf16_is_torch_s(rows):
    rows = np.concatenate([rows, np.array([[1.00390625, 1.01171875, -1.00390625, 0.0] * 6], dtype=np.float32)])  # ties
    kept, _ = rounded(rows, "bf16")
    assert kept.dtype == TYPES["bf16"]
    expected = torch.from_numpy(rows).bfloat16().float().numpy()
    np.testing.assert_array_equal(restored(kept, "bf16"), expected)


@pytest.mark.parametrize(("stored", "bound"), [("fp32", 0), ("bf16", 2**-8), ("int8", 0.5 / 127 * 24**0.5)])
def test_what_comes_back_is_near(rows, stored, bound):
    kept, scales = rounded(rows, stored)
    assert kept.dtype == TYPES[stored]
    assert (scales is not None) == (stored == "int8")
    assert relative_errors(rows, restored(kept, stored, scales)).max() <= bound


def test_fp16_is_numpy_s_and_too_large_is_infinite(rows):
    kept, _ = rounded(rows[30:], "fp16")
    np.testing.assert_array_equal(restored(kept, "fp16"), rows[30:].astype(np.float16).astype(np.float32))
    assert np.isinf(restored(rounded(np.full((1, 2), 1e5, dtype=np.float32), "fp16")[0], "fp16")).all()


def test_int8_uses_the_whole_range_of_each_vector_and_keeps_zeros():
    rows = np.array([[0, 0], [1e-3, -5e-4], [100, 50]], dtype=np.float32)
    kept, scales = rounded(rows, "int8")
    np.testing.assert_array_equal(kept, [[0, 0], [127, -64], [127, 64]])
    np.testing.assert_allclose(restored(kept, "int8", scales), rows, rtol=0.01)
