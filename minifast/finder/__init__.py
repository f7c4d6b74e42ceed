"""The result of the learning rate finder: rules that read a learning rate from its curve, and a suggestion.

The callback that raises the learning rate is ``minifast.callbacks.LRFinder``.
"""

from minifast.finder.result import FinderResult
from minifast.finder.rules import suggest_lr
from minifast.utils.public import suggest_names

__all__ = [
    "FinderResult",
    "suggest_lr",
]

suggest_names(__name__)
