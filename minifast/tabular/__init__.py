"""Networks for tables: embeddings of the categories beside the numbers, then linear layers.

Columns, missing values and categories are in ``minifast.data.tabular``; this package exports its names too.
"""

from minifast.data.tabular import Categorify, FillMissing, Normalize, TabularDataBunch
from minifast.tabular.model import TabularModel, tabular_learner
from minifast.utils.public import suggest_names

__all__ = ["Categorify", "FillMissing", "Normalize", "TabularDataBunch", "TabularModel", "tabular_learner"]

suggest_names(__name__)
