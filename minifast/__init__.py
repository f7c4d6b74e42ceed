"""A Learner for PyTorch: ``lr_find``, ``fit_one_cycle``, ``plot_lr``, over a training loop that fits on one screen."""

from minifast.callback import Callback, LearnerCallback
from minifast.callbacks.lr_finder import LRFinder
from minifast.callbacks.one_cycle import OneCycleScheduler
from minifast.callbacks.recorder import Recorder
from minifast.callbacks.scheduler import ScheduledParameters, Scheduler
from minifast.checkpoint import set_seed
from minifast.data.bunch import DataBunch, DatasetType, imagenet_stats
from minifast.data.image_bunch import ImageDataBunch
from minifast.data.images import get_image_files
from minifast.data.loader import DeviceDataLoader, TensorLoader
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
from minifast.learner import Learner, fit_one_cycle, lr_find
from minifast.metrics import AverageMetric, accuracy, add_metrics, error_rate
from minifast.models import simple_ann, simple_cnn
from minifast.optimizer import AdamW, OptimWrapper
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
    one_cycle,
    one_cycle_momentum,
    polynomial,
    step,
    three_phases,
    three_phases_momentum,
    two_halves,
)
from minifast.state import EVENTS, SmoothenValue
from minifast.suggest import suggest_lr

__version__ = "0.1.0"

__all__ = [
    "EVENTS",
    "AdamW",
    "AverageMetric",
    "Callback",
    "CallbackError",
    "DataBunch",
    "DataError",
    "DatasetType",
    "DeviceDataLoader",
    "Dispatcher",
    "DownloadError",
    "FileFormatError",
    "ImageDataBunch",
    "LRFinder",
    "Learner",
    "LearnerCallback",
    "MinifastError",
    "NonFiniteLossError",
    "OneCycleScheduler",
    "OptimWrapper",
    "Recorder",
    "ScheduledParameters",
    "Scheduler",
    "SmoothenValue",
    "TensorLoader",
    "URLs",
    "accuracy",
    "add_metrics",
    "annealing_cos",
    "annealing_exp",
    "annealing_linear",
    "annealing_no",
    "annealing_poly",
    "constant",
    "cosine",
    "error_rate",
    "exponential",
    "fit_one_cycle",
    "get_image_files",
    "imagenet_stats",
    "join",
    "linear",
    "lr_find",
    "one_cycle",
    "one_cycle_momentum",
    "polynomial",
    "set_seed",
    "simple_ann",
    "simple_cnn",
    "step",
    "suggest_lr",
    "three_phases",
    "three_phases_momentum",
    "two_halves",
    "untar_data",
]
