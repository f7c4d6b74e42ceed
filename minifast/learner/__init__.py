"""The Learner: one class with every public method; each method calls the package that does the work.

``running.py`` runs the training loop with its callbacks and checkpoint, and restores all state after ``lr_find``.
``fitting.py`` holds the ways to train, ``predicting.py`` inference, and ``loading.py`` builds a learner from an
exported file.
"""

from minifast.learner.learner import Learner, fit_one_cycle, lr_find
from minifast.learner.loading import load_learner
from minifast.utils.public import suggest_names

__all__ = [
    "Learner",
    "fit_one_cycle",
    "load_learner",
    "lr_find",
]

suggest_names(__name__)
