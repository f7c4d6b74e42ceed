"""The training loop and what it stands on: state, events, callbacks' contract, optimizer, progress bar.

``loop.py`` is the only loop in the library. Each ready-made callback lives in ``minifast.callbacks``; how a fit is
prepared lives in ``minifast.learner``.
"""

from minifast.training.averages import SmoothenValue
from minifast.training.callback import Callback, LearnerCallback
from minifast.training.dispatcher import Dispatcher
from minifast.training.optimizer import AdamW, OptimWrapper
from minifast.training.state import EVENTS

__all__ = [
    "EVENTS",
    "AdamW",
    "Callback",
    "Dispatcher",
    "LearnerCallback",
    "OptimWrapper",
    "SmoothenValue",
]
