"""Callbacks: everything that acts on events of the training loop, one idea a file.

The base classes and the table of events live in ``minifast.training``. Checkpoints of a run are written by a callback
in ``minifast.checkpoint.run``.
"""

from minifast.callbacks.accumulation import AccumulateScheduler
from minifast.callbacks.activations import ActivationStats, HookCallback
from minifast.callbacks.bn_freeze import BnFreeze
from minifast.callbacks.csv_logger import CSVLogger
from minifast.callbacks.early_stopping import EarlyStoppingCallback
from minifast.callbacks.ema import EMACallback
from minifast.callbacks.gradient_clipping import GradientClipping
from minifast.callbacks.lr_finder import LRFinder
from minifast.callbacks.lr_schedulers import LearningRateScheduler, TorchScheduler
from minifast.callbacks.mixed_precision import MixedPrecision
from minifast.callbacks.mixup import MixUpCallback
from minifast.callbacks.monitor import TrackerCallback
from minifast.callbacks.one_cycle import OneCycleScheduler, one_cycle_scheduler
from minifast.callbacks.phases import GeneralScheduler, Scheduler, TrainingPhase
from minifast.callbacks.recorder import Recorder
from minifast.callbacks.reduce_lr import ReduceLROnPlateauCallback
from minifast.callbacks.save_model import SaveModelCallback
from minifast.callbacks.scheduler import ScheduledParameters
from minifast.callbacks.show_graph import ShowGraph
from minifast.callbacks.stoppers import StopAfterNBatches, TerminateOnNaNCallback
from minifast.callbacks.tensorboard import TensorBoardCallback
from minifast.training.callback import Callback, LearnerCallback

__all__ = [
    "AccumulateScheduler",
    "ActivationStats",
    "BnFreeze",
    "CSVLogger",
    "Callback",
    "EMACallback",
    "EarlyStoppingCallback",
    "GeneralScheduler",
    "GradientClipping",
    "HookCallback",
    "LRFinder",
    "LearnerCallback",
    "LearningRateScheduler",
    "MixUpCallback",
    "MixedPrecision",
    "OneCycleScheduler",
    "Recorder",
    "ReduceLROnPlateauCallback",
    "SaveModelCallback",
    "ScheduledParameters",
    "Scheduler",
    "ShowGraph",
    "StopAfterNBatches",
    "TensorBoardCallback",
    "TerminateOnNaNCallback",
    "TorchScheduler",
    "TrackerCallback",
    "TrainingPhase",
    "one_cycle_scheduler",
]
