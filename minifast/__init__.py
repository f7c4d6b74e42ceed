"""A Learner for PyTorch with ``lr_find``, ``fit_one_cycle`` and ``plot_lr``, over a training loop of one page.

``from minifast import *`` imports the names of ``__all__``. Each name is in the package of its topic too, with others
that you type less often: ``minifast.callbacks``, ``minifast.metrics``, ``minifast.schedules``, ``minifast.data``, ...

The names and torch are imported when the first of them is used, so that ``minifast --help`` answers at once.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minifast._api import *

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
    "SegmentationDataBunch",
    "ShowGraph",
    "StopAfterNBatches",
    "TabularDataBunch",
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
    "tabular_learner",
    "three_phases",
    "top_k_accuracy",
    "two_halves",
    "untar_data",
    "vision_learner",
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
    """Import the names of the package; return a moved name with a DeprecationWarning that names its package."""
    from importlib import import_module
    from importlib.util import find_spec

    if name in _MOVED:
        import warnings

        package = f"{__name__}.{_MOVED[name]}"
        warnings.warn(
            f"minifast.{name} is now {package}.{name}; this name will be removed in version 0.3.",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(import_module(package), name)
    if not name.startswith("_"):
        if find_spec(f"{__name__}.{name}") is not None:
            return import_module(f"{__name__}.{name}")
        names = vars(import_module(f"{__name__}._api"))
        globals().update({key: value for key, value in names.items() if not key.startswith("_")})
        if name in names:
            return names[name]
    from minifast.utils.public import unknown_name

    raise unknown_name(__name__, name, [*__dir__(), *_MOVED])


def __dir__() -> list[str]:
    """Return the public names, imported yet or not, for completion."""
    return sorted({*globals(), *__all__})
