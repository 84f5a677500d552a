"""Turns a recipe into a checkpoint: the engine, the loop, train states and the schedule, over one rank or many."""

from .loop import train
from .settings import BatchSettings, GuardSettings, SavingSettings, TrainSettings

__all__ = ["BatchSettings", "GuardSettings", "SavingSettings", "TrainSettings", "train"]
