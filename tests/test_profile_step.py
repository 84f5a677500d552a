from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import profile_step


def test_operators_are_told_apart_by_name() -> None:
    parts = profile_step.by_part(
        [
            ("mkldnn::_linear_pointwise", 2.0),
            ("aten::mm", 1.0),
            ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", 4.0),
            ("aten::native_layer_norm_backward", 0.5),
            ("aten::_fused_adamw_", 0.25),
            ("aten::random_", 0.125),
            ("mystery", 8.0),
        ]
    )
    assert parts == {
        "matrix products": 3.0,
        "attention": 4.0,
        "normalisation": 0.5,
        "optimizer": 0.25,
        "dropout masks": 0.125,
        "other operators": 8.0,
    }


@pytest.mark.slow
def test_a_small_step_is_accounted_for() -> None:
    parts = profile_step.main(["--quick", "--batch", "8", "--steps", "2"])
    assert parts["matrix products"] > 0
    assert parts["attention"] > 0
    assert parts["optimizer"] > 0
