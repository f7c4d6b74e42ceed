"""The exceptions that minifast raises."""

from __future__ import annotations


class MinifastError(Exception):
    """The base of every error that minifast raises by a name of its own."""


class CallbackError(MinifastError, TypeError):
    """A callback breaks the contract: an event, a field or a returned value that does not exist."""


class DataError(MinifastError, ValueError):
    """The data cannot be used as they are: a missing folder, a broken file, labels that do not fit."""


class DownloadError(MinifastError, OSError):
    """An archive could not be fetched, is not the one expected, or would unpack outside its folder."""


class FileFormatError(MinifastError, ValueError):
    """A saved file is cut off, is not what it should be, or holds more than tensors and plain values."""


class NonFiniteLossError(MinifastError, ArithmeticError):
    """The training loss became NaN or infinite; the message says where."""
