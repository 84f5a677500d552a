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

# What a file may say: a type, the words to choose from, or a table of the same for what is nested.
# What no test has run is not in it: disks (nvme), a share of the optimiser (ratio), copies within a machine (hpz).
_OFFLOAD: dict[str, Any] = {"device": {"cpu", "none"}, "pin_memory": bool}
_ZERO: dict[str, Any] = {
    "stage": int,
    "allgather_partitions": bool,
    "allgather_bucket_size": int,
    "overlap_comm": bool,
    "reduce_scatter": bool,
    "reduce_bucket_size": int,
    "contiguous_gradients": bool,
    "round_robin_gradients": bool,
    "sub_group_size": int,
    "stage3_max_live_parameters": int,
    "stage3_max_reuse_distance": int,
    "stage3_prefetch_bucket_size": int,
    "stage3_param_persistence_threshold": int,
    "offload_optimizer": _OFFLOAD,
    "offload_param": _OFFLOAD,
}
PLACEMENT: dict[str, Any] = {
    "zero_optimization": _ZERO,
    "communication_data_type": {"fp32", "fp16", "bf16"},
    "comms_logger": {"enabled": bool, "verbose": bool, "prof_all": bool, "debug": bool, "prof_ops": list},
    "wall_clock_breakdown": bool,
    "steps_per_print": int,
    "dump_state": bool,
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
    for part, lowest in (("offload_optimizer", 1), ("offload_param", 3)):
        if part in content.get("zero_optimization", {}) and stage < lowest:
            raise SettingsError(f"{path}: zero_optimization.{part} needs stage {lowest} or higher, got {stage}")
    return content


def join(content: Mapping[str, Any], recipe: TrainSettings, world_size: int) -> dict[str, Any]:
    """The whole DeepSpeed configuration: placement from the file, every number from the recipe."""
    joined = {key: value for key, value in content.items() if key not in RECIPE_OWNED}
    joined.setdefault("zero_optimization", {"stage": 0}).setdefault("stage", 0)
    joined |= {
        "train_batch_size": recipe.batch.size,
        "train_micro_batch_size_per_gpu": recipe.batch.rows_per_rank(world_size),
        "gradient_accumulation_steps": recipe.batch.accumulation,
        "gradient_clipping": recipe.optim.clip,
        # bf16 is the encoder's own autocast over fp32 weights. DeepSpeed's would make its masters from rounded
        # weights, feed rounded ones to the momentum encoder, and take a wrong first step at stage 0.
        # fp16 likewise: the loss scale is ours, the same in every engine.
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        # The optimiser is torch's own AdamW, the same in every engine: nothing to compile, nothing to differ.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    joined.setdefault("steps_per_print", 10**9)
    return joined


def stage_of(joined: Mapping[str, Any] | None) -> int:
    """The ZeRO stage of a configuration; 0, nothing sharded, without one."""
    return 0 if joined is None else int(joined["zero_optimization"]["stage"])


def _check(content: Mapping[str, Any], allowed: Mapping[str, Any], path: Path, at: str) -> None:
    for key, value in content.items():
        if key not in allowed:
            raise SettingsError(f"{path}: unknown key {at}{key}; {did_you_mean(key, [*allowed, *_owned(at)])}")
        if not _fits(value, allowed[key]):
            raise SettingsError(f"{path}: {at}{key} must be {_in_words(allowed[key])}, got {json.dumps(value)}")
        if isinstance(value, dict):
            _check(value, allowed[key], path, f"{at}{key}.")


def _fits(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, set):
        return value in wanted if isinstance(value, str) else False
    if wanted is int:  # JSON writes 5e8 for a whole number too; true is no number
        return isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0
    return isinstance(value, dict if isinstance(wanted, dict) else wanted)


def _in_words(wanted: Any) -> str:
    if isinstance(wanted, set):
        return f"one of {', '.join(sorted(wanted))}"
    if isinstance(wanted, dict):
        return "an object"
    return {bool: "true or false", int: "a whole number", list: "a list"}[wanted]


def _owned(at: str) -> list[str]:
    return [] if at else list(RECIPE_OWNED)


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"key {key!r} stands twice")
    return dict(pairs)
