"""Diagnostics: check a setup before training, summarize a model, interpret its predictions.

``learn.check()``, ``learn.summary()`` and ``learn.interpret()`` call this package. A NaN loss is handled in
``minifast.callbacks.nan_loss`` and diagnosed in ``minifast.training.non_finite``.
"""

from minifast.diagnostics.check_result import CheckResult, Finding
from minifast.diagnostics.interpretation import ClassificationInterpretation, Interpretation
from minifast.diagnostics.summary import model_sizes, model_summary, num_features_model
from minifast.utils.public import suggest_names

__all__ = [
    "CheckResult",
    "ClassificationInterpretation",
    "Finding",
    "Interpretation",
    "model_sizes",
    "model_summary",
    "num_features_model",
]

suggest_names(__name__)
