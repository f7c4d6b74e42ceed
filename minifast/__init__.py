"""A Learner for PyTorch with ``lr_find``, ``fit_one_cycle`` and ``plot_lr``, over a training loop of one page.

``from minifast import *`` imports the names of ``__all__``. Each name is in the package of its topic too, with others
that you type less often: ``minifast.callbacks``, ``minifast.metrics``, ``minifast.schedules``, ``minifast.data``, ...
"""

from typing import Any

from minifast import models, schedules
from minifast.callbacks import EMA as EMA
from minifast.callbacks import (
    AccumulateScheduler,
    ActivationStats,
    BnFreeze,
    Callback,
    CSVLogger,
    EarlyStoppingCallback,
    EMACallback,
    GradientClipping,
    LearnerCallback,
    LearningRateScheduler,
    LRFinder,
    MixedPrecision,
    MixUpCallback,
    OneCycleScheduler,
    Recorder,
    ReduceLROnPlateauCallback,
    SaveModelCallback,
    Scheduler,
    ShowGraph,
    StopAfterNBatches,
    TensorBoardCallback,
    TerminateOnNaNCallback,
    TorchScheduler,
    TrackerCallback,
)
from minifast.callbacks import EarlyStopping as EarlyStopping
from minifast.callbacks import GeneralScheduler as GeneralScheduler
from minifast.callbacks import GradientAccumulation as GradientAccumulation
from minifast.callbacks import HookCallback as HookCallback
from minifast.callbacks import MixUp as MixUp
from minifast.callbacks import ReduceLROnPlateau as ReduceLROnPlateau
from minifast.callbacks import SaveModel as SaveModel
from minifast.callbacks import TensorBoard as TensorBoard
from minifast.callbacks import TerminateOnNaN as TerminateOnNaN
from minifast.callbacks import Tracker as Tracker
from minifast.callbacks import TrainingPhase as TrainingPhase
from minifast.callbacks import one_cycle_scheduler as one_cycle_scheduler
from minifast.checkpoint import RunCheckpoint
from minifast.comparison import compare as compare
from minifast.data import (
    DataBunch,
    DatasetType,
    ImageDataBunch,
    TensorDataBunch,
    TensorLoader,
    URLs,
    get_image_files,
    get_transforms,
    imagenet_stats,
    untar_data,
)
from minifast.data import DeviceDataLoader as DeviceDataLoader
from minifast.data import channel_view as channel_view
from minifast.data import denormalize as denormalize
from minifast.data import normalize as normalize
from minifast.diagnostics import ClassificationInterpretation
from minifast.diagnostics import Interpretation as Interpretation
from minifast.diagnostics import model_sizes as model_sizes
from minifast.diagnostics import model_summary as model_summary
from minifast.diagnostics import num_features_model as num_features_model
from minifast.errors import CallbackError, DataError, DownloadError, FileFormatError, MinifastError, NonFiniteLossError
from minifast.history import History
from minifast.history import read_history as read_history
from minifast.hooks import Hook as Hook
from minifast.hooks import Hooks as Hooks
from minifast.hooks import hook_output as hook_output
from minifast.hooks import hook_outputs as hook_outputs
from minifast.learner import Learner, fit_one_cycle, load_learner, lr_find
from minifast.losses import LabelSmoothingCrossEntropy
from minifast.metrics import (
    AUROC,
    RMSE,
    AverageMetric,
    ConfusionMatrix,
    FBeta,
    KappaScore,
    MatthewsCorreff,
    Precision,
    R2Score,
    Recall,
    accuracy,
    accuracy_thresh,
    add_metrics,
    dice,
    error_rate,
    fbeta,
    mae,
    mse,
    r2_score,
    rmse,
    top_k_accuracy,
)
from minifast.metrics import ExplainedVariance as ExplainedVariance
from minifast.metrics import ExpRMSPE as ExpRMSPE
from minifast.metrics import auc_roc_score as auc_roc_score
from minifast.metrics import exp_rmspe as exp_rmspe
from minifast.metrics import explained_variance as explained_variance
from minifast.metrics import mean_absolute_error as mean_absolute_error
from minifast.metrics import mean_squared_error as mean_squared_error
from minifast.metrics import mean_squared_logarithmic_error as mean_squared_logarithmic_error
from minifast.metrics import msle as msle
from minifast.metrics import root_mean_squared_error as root_mean_squared_error
from minifast.models import conv_layer as conv_layer
from minifast.models import simple_ann, simple_cnn
from minifast.schedules import (
    annealing_cos,
    annealing_linear,
    create_one_cycle_lr_schedule,
    flat_cosine,
    one_cycle,
    three_phases,
    two_halves,
    warm_restarts,
)
from minifast.schedules import annealing_exp as annealing_exp
from minifast.schedules import annealing_no as annealing_no
from minifast.schedules import annealing_poly as annealing_poly
from minifast.training import AdamW
from minifast.training import OptimWrapper as OptimWrapper
from minifast.training import SmoothenValue as SmoothenValue
from minifast.utils.random import set_seed
from minifast.vision import AdaptiveConcatPool2d as AdaptiveConcatPool2d
from minifast.vision import cnn_learner
from minifast.vision import create_body as create_body
from minifast.vision import create_head as create_head

__version__ = "0.2.0"

__all__ = [
    "AUROC",
    "RMSE",
    "AccumulateScheduler",
    "ActivationStats",
    "AdamW",
    "AverageMetric",
    "BnFreeze",
    "CSVLogger",
    "Callback",
    "CallbackError",
    "ClassificationInterpretation",
    "ConfusionMatrix",
    "DataBunch",
    "DataError",
    "DatasetType",
    "DownloadError",
    "EMACallback",
    "EarlyStoppingCallback",
    "FBeta",
    "FileFormatError",
    "GradientClipping",
    "History",
    "ImageDataBunch",
    "KappaScore",
    "LRFinder",
    "LabelSmoothingCrossEntropy",
    "Learner",
    "LearnerCallback",
    "LearningRateScheduler",
    "MatthewsCorreff",
    "MinifastError",
    "MixUpCallback",
    "MixedPrecision",
    "NonFiniteLossError",
    "OneCycleScheduler",
    "Precision",
    "R2Score",
    "Recall",
    "Recorder",
    "ReduceLROnPlateauCallback",
    "RunCheckpoint",
    "SaveModelCallback",
    "Scheduler",
    "ShowGraph",
    "StopAfterNBatches",
    "TensorBoardCallback",
    "TensorDataBunch",
    "TensorLoader",
    "TerminateOnNaNCallback",
    "TorchScheduler",
    "TrackerCallback",
    "URLs",
    "accuracy",
    "accuracy_thresh",
    "add_metrics",
    "annealing_cos",
    "annealing_linear",
    "cnn_learner",
    "create_one_cycle_lr_schedule",
    "dice",
    "error_rate",
    "fbeta",
    "fit_one_cycle",
    "flat_cosine",
    "get_image_files",
    "get_transforms",
    "imagenet_stats",
    "load_learner",
    "lr_find",
    "mae",
    "models",
    "mse",
    "one_cycle",
    "r2_score",
    "rmse",
    "schedules",
    "set_seed",
    "simple_ann",
    "simple_cnn",
    "three_phases",
    "top_k_accuracy",
    "two_halves",
    "untar_data",
    "warm_restarts",
]

# Names that moved to another package in version 0.2.
_MOVED = {
    "SCHEDULES": "schedules",
    "constant": "schedules",
    "cosine": "schedules",
    "exponential": "schedules",
    "join": "schedules",
    "linear": "schedules",
    "one_cycle_momentum": "schedules",
    "polynomial": "schedules",
    "repeat": "schedules",
    "step": "schedules",
    "three_phases_momentum": "schedules",
    "EVENTS": "training",
    "Dispatcher": "training",
    "ScheduledParameters": "callbacks",
    "CheckResult": "diagnostics",
    "Finding": "diagnostics",
    "FinderResult": "finder",
    "suggest_lr": "finder",
    "Comparison": "comparison",
}


def __getattr__(name: str) -> Any:
    """Return a moved name with a DeprecationWarning that names its package."""
    if name not in _MOVED:
        raise AttributeError(f"module 'minifast' has no attribute {name!r}")
    import importlib
    import warnings

    package = f"minifast.{_MOVED[name]}"
    warnings.warn(
        f"minifast.{name} is now {package}.{name}; this name will be removed in version 0.3.",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(importlib.import_module(package), name)
