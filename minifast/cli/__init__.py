"""The command line: ``minifast train``, ``predict``, ``compare`` and ``schedule``."""

from minifast.cli.options import main, parser

__all__ = [
    "main",
    "parser",
]
