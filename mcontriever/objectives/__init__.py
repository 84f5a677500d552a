"""What training minimises, as pure functions of tensors: no rank, no collective, nothing remembered between calls but
the queue and the momentum encoder, which say so in their names.
"""

from .contrastive import Contrast, info_nce, moco_loss
from .momentum import KeyQueue, MomentumEncoder
from .settings import ObjectiveSettings

__all__ = ["Contrast", "KeyQueue", "MomentumEncoder", "ObjectiveSettings", "info_nce", "moco_loss"]
