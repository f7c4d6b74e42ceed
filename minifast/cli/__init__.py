"""The command line: ``minifast train``, ``predict``, ``compare``, ``schedule``, ``env`` and ``cache``."""

from minifast.cli.options import main, parser

__all__ = [
    "main",
    "parser",
]
