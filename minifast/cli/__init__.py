"""The command line: ``minifast train``, ``predict``, ``compare``, ``schedule``, ``env`` and ``cache``."""

from minifast.cli.options import main, parser
from minifast.utils.public import suggest_names

__all__ = [
    "main",
    "parser",
]

suggest_names(__name__)
