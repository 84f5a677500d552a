"""A DeepSpeed file joined with the recipe: who owns which number is decided here, and a doubt is an error.

DeepSpeed takes a misspelt top-level key without a word, so the keys are listed here and everything else is refused. The
file owns where tensors live; what could change results belongs to the recipe and may only be "auto" in the file. That
is why swapping zero1.json for zero3.json cannot change the experiment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import SettingsError, did_you_mean
from .settings import TrainSettings

# What a file may say: None for a plain value, a table for a nested one.
_OFFLOAD: dict[str, Any] = dict.fromkeys(
    ["device", "pin_memory", "ratio", "nvme_path", "buffer_count", "buffer_size", "max_in_cpu", "fast_init"]
)
_ZERO: dict[str, Any] = {
    **dict.fromkeys(
        [
            "stage", "allgather_partitions", "allgather_bucket_size", "overlap_comm", "reduce_scatter",
            "reduce_bucket_size", "contiguous_gradients", "round_robin_gradients", "sub_group_size",
            "stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_prefetch_bucket_size",
            "stage3_param_persistence_threshold", "stage3_gather_16bit_weights_on_model_save",
            "zero_hpz_partition_size", "zero_quantized_weights", "zero_quantized_gradients",
        ]
    ),
    "offload_optimizer": _OFFLOAD,
    "offload_param": _OFFLOAD,
}  # fmt: skip
PLACEMENT: dict[str, Any] = {
    "zero_optimization": _ZERO,
    "communication_data_type": None,
    "comms_logger": dict.fromkeys(["enabled", "verbose", "prof_all", "debug", "prof_ops"]),
    "wall_clock_breakdown": None,
    "steps_per_print": None,
    "dump_state": None,
}
# What the recipe owns, and where. In a file these may stand as "auto".
RECIPE_OWNED = {
    "train_batch_size": "batch.size",
    "train_micro_batch_size_per_gpu": "batch.size / batch.accumulation / ranks",
    "gradient_accumulation_steps": "batch.accumulation",
    "gradient_clipping": "optim.clip",
    "bf16": "precision",
    "fp16": "precision",
    "optimizer": "[optim]",
    "scheduler": "[optim]",
}


def read(path: Path | str) -> dict[str, Any]:
    """The checked content of a DeepSpeed file."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_no_repeats)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}; see ds_configs/") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid JSON: {error}") from error
    except ValueError as error:
        raise SettingsError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: must hold a JSON object")
    for key, owner in RECIPE_OWNED.items():
        if key in content and content[key] != "auto":
            raise SettingsError(f'{path}: {key} belongs to the recipe ({owner}); remove it, or write "auto"')
    _check({key: value for key, value in content.items() if key not in RECIPE_OWNED}, PLACEMENT, path, "")
    stage = content.get("zero_optimization", {}).get("stage", 0)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        raise SettingsError(f"{path}: zero_optimization.stage must be 0, 1, 2 or 3, got {stage!r}")
    if "offload_param" in content.get("zero_optimization", {}) and stage != 3:
        raise SettingsError(f"{path}: zero_optimization.offload_param needs stage 3, got {stage}")
    return content


def join(content: Mapping[str, Any], recipe: TrainSettings, world_size: int) -> dict[str, Any]:
    """The whole DeepSpeed configuration: placement from the file, every number from the recipe."""
    joined = {key: value for key, value in content.items() if key not in RECIPE_OWNED}
    stage = joined.setdefault("zero_optimization", {"stage": 0}).setdefault("stage", 0)
    if recipe.precision == "bf16" and stage == 0:
        raise SettingsError(
            "precision bf16 needs ZeRO stage 1 or higher under DeepSpeed, whose stage 0 takes a wrong first step; "
            "use ds_configs/zero1.json, or leave --deepspeed_config out"
        )
    joined |= {
        "train_batch_size": recipe.batch.size,
        "train_micro_batch_size_per_gpu": recipe.batch.rows_per_rank(world_size),
        "gradient_accumulation_steps": recipe.batch.accumulation,
        "gradient_clipping": recipe.optim.clip,
        "bf16": {"enabled": recipe.precision == "bf16"},
        # The optimiser is torch's own AdamW, the same in every engine: nothing to compile, nothing to differ.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    joined.setdefault("steps_per_print", 10**9)
    return joined


def _check(content: Mapping[str, Any], allowed: Mapping[str, Any], path: Path, at: str) -> None:
    for key, value in content.items():
        if key not in allowed:
            raise SettingsError(f"{path}: unknown key {at}{key}; {did_you_mean(key, [*allowed, *_owned(at)])}")
        if allowed[key] is not None:
            if not isinstance(value, dict):
                raise SettingsError(f"{path}: {at}{key} must be an object, got {value!r}")
            _check(value, allowed[key], path, f"{at}{key}.")


def _owned(at: str) -> list[str]:
    return [] if at else list(RECIPE_OWNED)


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"key {key!r} stands twice")
    return dict(pairs)
