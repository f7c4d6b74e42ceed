"""Processes that train one model together: which there are, what they exchange, and how to start them.

Only this package calls ``torch.distributed``, and imports it when a process has others beside it. How data are split
among the processes is in ``minifast.data.shards``, what a run does with them in ``minifast.training.parallel``.
"""

from minifast.distributed.launch import launch
from minifast.utils.public import suggest_names

__all__ = ["launch"]

suggest_names(__name__)
