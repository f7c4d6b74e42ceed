"""Tables with categories and numbers: the encoder of their rows, and the TabularDataBunch.

Labels from CSV files of images are in ``minifast.data.tables``; the network for tables is in ``minifast.tabular``.
"""

from minifast.data.tabular.encoder import Categorify, FillMissing, Normalize, TableEncoder
from minifast.data.tabular.tabular_bunch import TabularDataBunch

__all__ = ["Categorify", "FillMissing", "Normalize", "TableEncoder", "TabularDataBunch"]
