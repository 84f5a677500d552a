"""What training minimises, as pure functions of tensors: no rank, no collective, nothing remembered between calls but
the queue and the momentum encoder, which say so in their names.
"""

from .contrastive import Contrast, info_nce, margin_loss, moco_loss, moco_margin_loss
from .momentum import KeyQueue, MomentumEncoder
from .settings import ObjectiveSettings
from .sharded import KeyEncoder, ShardedMomentumEncoder

__all__ = [
    "Contrast",
    "KeyEncoder",
    "KeyQueue",
    "MomentumEncoder",
    "ObjectiveSettings",
    "ShardedMomentumEncoder",
    "info_nce",
    "margin_loss",
    "moco_loss",
    "moco_margin_loss",
]
