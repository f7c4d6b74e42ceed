"""Metrics: functions and objects that compare predictions with targets over the validation set.

Loss functions live in ``minifast.losses``; plots of what a model gets wrong live in ``minifast.diagnostics``.
"""

from minifast.metrics.confusion import ConfusionMatrix, FBeta, KappaScore, MatthewsCorreff, Precision, Recall
from minifast.metrics.functions import (
    accuracy,
    accuracy_thresh,
    dice,
    error_rate,
    fbeta,
    foreground_acc,
    top_k_accuracy,
)
from minifast.metrics.ranking import AUROC, auc_roc_score
from minifast.metrics.regression import (
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
from minifast.metrics.wrappers import AverageMetric, add_metrics
from minifast.utils.public import suggest_names

__all__ = [
    "AUROC",
    "RMSE",
    "AverageMetric",
    "ConfusionMatrix",
    "ExpRMSPE",
    "ExplainedVariance",
    "FBeta",
    "KappaScore",
    "MatthewsCorreff",
    "Precision",
    "R2Score",
    "Recall",
    "accuracy",
    "accuracy_thresh",
    "add_metrics",
    "auc_roc_score",
    "dice",
    "error_rate",
    "exp_rmspe",
    "explained_variance",
    "fbeta",
    "foreground_acc",
    "mae",
    "mean_absolute_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "mse",
    "msle",
    "r2_score",
    "rmse",
    "root_mean_squared_error",
    "top_k_accuracy",
]

suggest_names(__name__)
