"""The Learner: one class with every public method, each of which calls the package that does the work.

``running.py`` prepares a run around the loop, ``fitting.py`` holds the ways to train, ``predicting.py`` inference, and
``loading.py`` builds a learner from an export.
"""

from minifast.learner.learner import Learner, fit_one_cycle, lr_find
from minifast.learner.loading import load_learner

__all__ = [
    "Learner",
    "fit_one_cycle",
    "load_learner",
    "lr_find",
]
