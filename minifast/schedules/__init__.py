"""Schedules: functions of progress in [0, 1] that return a learning rate, a momentum or a weight decay.

Build one (``linear``, ``cosine``, ...), combine several (``join``, ``repeat``), or use a complete one (``one_cycle``).
The callbacks that apply a schedule during training are in ``minifast.callbacks``.
"""

from minifast.schedules.annealing import annealing_cos, annealing_exp, annealing_linear, annealing_no, annealing_poly
from minifast.schedules.one_cycle import (
    create_one_cycle_lr_schedule,
    one_cycle,
    one_cycle_momentum,
    three_phases,
    three_phases_momentum,
    two_halves,
)
from minifast.schedules.registry import SCHEDULES, flat_cosine, warm_restarts
from minifast.schedules.shapes import constant, cosine, exponential, join, linear, polynomial, repeat, step
from minifast.utils.public import suggest_names

__all__ = [
    "SCHEDULES",
    "annealing_cos",
    "annealing_exp",
    "annealing_linear",
    "annealing_no",
    "annealing_poly",
    "constant",
    "cosine",
    "create_one_cycle_lr_schedule",
    "exponential",
    "flat_cosine",
    "join",
    "linear",
    "one_cycle",
    "one_cycle_momentum",
    "polynomial",
    "repeat",
    "step",
    "three_phases",
    "three_phases_momentum",
    "two_halves",
    "warm_restarts",
]

suggest_names(__name__)
