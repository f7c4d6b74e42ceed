"""The learning rate finder's result: what its rules read from a curve, and its suggestion.

The callback that raises the learning rate lives in ``minifast.callbacks.lr_finder``.
"""

from minifast.finder.result import FinderResult
from minifast.finder.rules import suggest_lr

__all__ = [
    "FinderResult",
    "suggest_lr",
]
