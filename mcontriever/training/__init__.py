"""Turns a recipe into a checkpoint: the engine, the loop, train states and the schedule, over one rank or many."""

from .loop import train
from .settings import BatchSettings, SavingSettings, TrainSettings

__all__ = ["BatchSettings", "SavingSettings", "TrainSettings", "train"]
