"""A Learner for PyTorch: ``lr_find``, ``fit_one_cycle``, ``plot_lr``, over a training loop that fits on one screen."""

from minifast import models
from minifast.bodies import create_body
from minifast.callback import Callback, LearnerCallback
from minifast.callbacks.accumulation import AccumulateScheduler
from minifast.callbacks.activations import ActivationStats, HookCallback
from minifast.callbacks.averaging import EMACallback
from minifast.callbacks.bn_freeze import BnFreeze
from minifast.callbacks.csv_logger import CSVLogger
from minifast.callbacks.gradient_clipping import GradientClipping
from minifast.callbacks.lr_finder import LRFinder
from minifast.callbacks.mixed_precision import MixedPrecision
from minifast.callbacks.mixup import MixUpCallback
from minifast.callbacks.one_cycle import OneCycleScheduler, one_cycle_scheduler
from minifast.callbacks.other_schedulers import GeneralScheduler, LearningRateScheduler, TorchScheduler, TrainingPhase
from minifast.callbacks.recorder import Recorder
from minifast.callbacks.scheduler import ScheduledParameters, Scheduler
from minifast.callbacks.show_graph import ShowGraph
from minifast.callbacks.stoppers import StopAfterNBatches, TerminateOnNaNCallback
from minifast.callbacks.tensorboard import TensorBoardCallback
from minifast.callbacks.tracker import (
    EarlyStoppingCallback,
    ReduceLROnPlateauCallback,
    SaveModelCallback,
    TrackerCallback,
)
from minifast.checkpoint import set_seed
from minifast.comparison import Comparison, compare
from minifast.confusion import (
    AUROC,
    ConfusionMatrix,
    FBeta,
    KappaScore,
    MatthewsCorreff,
    Precision,
    Recall,
    auc_roc_score,
)
from minifast.data.augment import get_transforms
from minifast.data.bunch import DataBunch, DatasetType
from minifast.data.image_bunch import ImageDataBunch
from minifast.data.images import get_image_files
from minifast.data.loader import DeviceDataLoader, TensorLoader
from minifast.data.normalize import channel_view, denormalize, imagenet_stats, normalize
from minifast.data.tensor_bunch import TensorDataBunch
from minifast.data.urls import URLs, untar_data
from minifast.dispatcher import Dispatcher
from minifast.errors import (
    CallbackError,
    DataError,
    DownloadError,
    FileFormatError,
    MinifastError,
    NonFiniteLossError,
)
from minifast.finder_result import FinderResult
from minifast.findings import CheckResult, Finding
from minifast.heads import AdaptiveConcatPool2d, create_head
from minifast.history import History, read_history
from minifast.hooks import Hook, Hooks, hook_output, hook_outputs
from minifast.interpretation import ClassificationInterpretation, Interpretation
from minifast.learner import Learner, fit_one_cycle, lr_find
from minifast.loading import load_learner
from minifast.losses import LabelSmoothingCrossEntropy
from minifast.metrics import (
    AverageMetric,
    accuracy,
    accuracy_thresh,
    add_metrics,
    dice,
    error_rate,
    fbeta,
    top_k_accuracy,
)
from minifast.models import conv_layer, simple_ann, simple_cnn
from minifast.optimizer import AdamW, OptimWrapper
from minifast.policies import (
    SCHEDULES,
    create_one_cycle_lr_schedule,
    flat_cosine,
    one_cycle,
    one_cycle_momentum,
    three_phases,
    three_phases_momentum,
    two_halves,
    warm_restarts,
)
from minifast.regression import (
    RMSE,
    ExplainedVariance,
    ExpRMSPE,
    R2Score,
    exp_rmspe,
    explained_variance,
    mae,
    mean_absolute_error,
    mean_squared_error,
    mean_squared_logarithmic_error,
    mse,
    msle,
    r2_score,
    rmse,
    root_mean_squared_error,
)
from minifast.schedules import (
    annealing_cos,
    annealing_exp,
    annealing_linear,
    annealing_no,
    annealing_poly,
    constant,
    cosine,
    exponential,
    join,
    linear,
    polynomial,
    repeat,
    step,
)
from minifast.state import EVENTS, SmoothenValue
from minifast.suggest import suggest_lr
from minifast.summary import model_sizes, model_summary, num_features_model
from minifast.transfer import cnn_learner

__version__ = "0.1.0"

__all__ = [
    "AUROC",
    "EVENTS",
    "RMSE",
    "SCHEDULES",
    "AccumulateScheduler",
    "ActivationStats",
    "AdamW",
    "AdaptiveConcatPool2d",
    "AverageMetric",
    "BnFreeze",
    "CSVLogger",
    "Callback",
    "CallbackError",
    "CheckResult",
    "ClassificationInterpretation",
    "Comparison",
    "ConfusionMatrix",
    "DataBunch",
    "DataError",
    "DatasetType",
    "DeviceDataLoader",
    "Dispatcher",
    "DownloadError",
    "EMACallback",
    "EarlyStoppingCallback",
    "ExpRMSPE",
    "ExplainedVariance",
    "FBeta",
    "FileFormatError",
    "FinderResult",
    "Finding",
    "GeneralScheduler",
    "GradientClipping",
    "History",
    "Hook",
    "HookCallback",
    "Hooks",
    "ImageDataBunch",
    "Interpretation",
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
    "OptimWrapper",
    "Precision",
    "R2Score",
    "Recall",
    "Recorder",
    "ReduceLROnPlateauCallback",
    "SaveModelCallback",
    "ScheduledParameters",
    "Scheduler",
    "ShowGraph",
    "SmoothenValue",
    "StopAfterNBatches",
    "TensorBoardCallback",
    "TensorDataBunch",
    "TensorLoader",
    "TerminateOnNaNCallback",
    "TorchScheduler",
    "TrackerCallback",
    "TrainingPhase",
    "URLs",
    "accuracy",
    "accuracy_thresh",
    "add_metrics",
    "annealing_cos",
    "annealing_exp",
    "annealing_linear",
    "annealing_no",
    "annealing_poly",
    "auc_roc_score",
    "channel_view",
    "cnn_learner",
    "compare",
    "constant",
    "conv_layer",
    "cosine",
    "create_body",
    "create_head",
    "create_one_cycle_lr_schedule",
    "denormalize",
    "dice",
    "error_rate",
    "exp_rmspe",
    "explained_variance",
    "exponential",
    "fbeta",
    "fit_one_cycle",
    "flat_cosine",
    "get_image_files",
    "get_transforms",
    "hook_output",
    "hook_outputs",
    "imagenet_stats",
    "join",
    "linear",
    "load_learner",
    "lr_find",
    "mae",
    "mean_absolute_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "model_sizes",
    "model_summary",
    "models",
    "mse",
    "msle",
    "normalize",
    "num_features_model",
    "one_cycle",
    "one_cycle_momentum",
    "one_cycle_scheduler",
    "polynomial",
    "r2_score",
    "read_history",
    "repeat",
    "rmse",
    "root_mean_squared_error",
    "set_seed",
    "simple_ann",
    "simple_cnn",
    "step",
    "suggest_lr",
    "three_phases",
    "three_phases_momentum",
    "top_k_accuracy",
    "two_halves",
    "untar_data",
    "warm_restarts",
]
