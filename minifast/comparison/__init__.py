"""Compare training configurations over the same seeds, one run after another or in several processes.

``comparing`` holds ``compare``, ``runs`` one training of it, ``processes`` the workers, ``result`` the table, the plot
and the significance test.
"""

from minifast.comparison.comparing import compare
from minifast.comparison.result import Comparison
from minifast.utils.public import suggest_names

__all__ = ["Comparison", "compare"]

suggest_names(__name__)
