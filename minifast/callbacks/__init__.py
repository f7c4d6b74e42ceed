"""Callbacks: classes that act on the events of the training loop, one per file.

The base classes and the table of events are in ``minifast.training``; the callback that checkpoints a run is in
``minifast.checkpoint.run``. ``scheduler.py`` sets the learning rate of each batch, ``nan_loss.py`` handles a NaN or
infinite loss. Callbacks with fastai v1's names ``XCallback`` are also available as ``X``, and ``AccumulateScheduler``
as ``GradientAccumulation``.
"""

from minifast.callbacks.accumulation import AccumulateScheduler
from minifast.callbacks.activations import ActivationStats, HookCallback
from minifast.callbacks.bn_freeze import BnFreeze
from minifast.callbacks.csv_logger import CSVLogger
from minifast.callbacks.early_stopping import EarlyStoppingCallback
from minifast.callbacks.ema import EMACallback
from minifast.callbacks.gradient_clipping import GradientClipping
from minifast.callbacks.logger import RunLogger
from minifast.callbacks.lr_finder import LRFinder
from minifast.callbacks.lr_schedulers import LearningRateScheduler, TorchScheduler
from minifast.callbacks.mixed_precision import MixedPrecision
from minifast.callbacks.mixup import MixUpCallback
from minifast.callbacks.mlflow import MLflowCallback
from minifast.callbacks.monitor import TrackerCallback
from minifast.callbacks.one_cycle import OneCycleScheduler, one_cycle_scheduler
from minifast.callbacks.optuna import OptunaPruningCallback
from minifast.callbacks.phases import GeneralScheduler, Scheduler, TrainingPhase
from minifast.callbacks.recorder import Recorder
from minifast.callbacks.reduce_lr import ReduceLROnPlateauCallback
from minifast.callbacks.save_model import SaveModelCallback
from minifast.callbacks.scheduler import ScheduledParameters
from minifast.callbacks.show_graph import ShowGraph
from minifast.callbacks.stoppers import StopAfterNBatches, TerminateOnNaNCallback
from minifast.callbacks.tensorboard import TensorBoardCallback
from minifast.callbacks.wandb import WandbCallback
from minifast.training.callback import Callback, LearnerCallback
from minifast.utils.public import suggest_names

EMA = EMACallback
EarlyStopping = EarlyStoppingCallback
GradientAccumulation = AccumulateScheduler
MixUp = MixUpCallback
ReduceLROnPlateau = ReduceLROnPlateauCallback
SaveModel = SaveModelCallback
TensorBoard = TensorBoardCallback
TerminateOnNaN = TerminateOnNaNCallback
Tracker = TrackerCallback

__all__ = [
    "EMA",
    "AccumulateScheduler",
    "ActivationStats",
    "BnFreeze",
    "CSVLogger",
    "Callback",
    "EMACallback",
    "EarlyStopping",
    "EarlyStoppingCallback",
    "GeneralScheduler",
    "GradientAccumulation",
    "GradientClipping",
    "HookCallback",
    "LRFinder",
    "LearnerCallback",
    "LearningRateScheduler",
    "MLflowCallback",
    "MixUp",
    "MixUpCallback",
    "MixedPrecision",
    "OneCycleScheduler",
    "OptunaPruningCallback",
    "Recorder",
    "ReduceLROnPlateau",
    "ReduceLROnPlateauCallback",
    "RunLogger",
    "SaveModel",
    "SaveModelCallback",
    "ScheduledParameters",
    "Scheduler",
    "ShowGraph",
    "StopAfterNBatches",
    "TensorBoard",
    "TensorBoardCallback",
    "TerminateOnNaN",
    "TerminateOnNaNCallback",
    "TorchScheduler",
    "Tracker",
    "TrackerCallback",
    "TrainingPhase",
    "WandbCallback",
    "one_cycle_scheduler",
]

suggest_names(__name__)
