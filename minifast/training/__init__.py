"""The training loop and its parts: state, events, base classes of callbacks, optimizer and progress bar.

``loop.py`` is the only loop in the library. The ready-made callbacks are in ``minifast.callbacks``; the preparation of
a fit is in ``minifast.learner``. The weight of a batch in the mean loss is in ``minifast.losses``.
"""

from minifast.training.averages import SmoothenValue
from minifast.training.callback import Callback, LearnerCallback
from minifast.training.dispatcher import Dispatcher
from minifast.training.optimizer import AdamW, OptimWrapper
from minifast.training.state import EVENTS
from minifast.utils.public import suggest_names

__all__ = [
    "EVENTS",
    "AdamW",
    "Callback",
    "Dispatcher",
    "LearnerCallback",
    "OptimWrapper",
    "SmoothenValue",
]

suggest_names(__name__)
