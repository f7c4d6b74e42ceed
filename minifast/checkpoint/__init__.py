"""Checkpoints: save and load a model, save a run while it trains, and resume it bit for bit.

``model.py`` saves weights, ``run.py`` saves and resumes a run, ``fingerprint.py`` recognizes the same run. The data
order is restored by ``minifast.data.resume``; the atomic writes themselves live in ``minifast.utils.files``.
"""

from minifast.checkpoint.run import RunCheckpoint
from minifast.utils.public import suggest_names

__all__ = [
    "RunCheckpoint",
]

suggest_names(__name__)
