"""The exceptions that minifast raises."""

from __future__ import annotations


class MinifastError(Exception):
    """The base class of minifast's own exceptions.

    Args:
        message: what is wrong.
        hint: what to do about it in Python; it follows the message in ``str(error)``.
        cli_hint: what to do about it on the command line, which prints this in place of ``hint``.
    """

    def __init__(self, message: object = "", hint: str = "", cli_hint: str = "") -> None:
        super().__init__(f"{message} {hint}" if hint else message)
        self.cli_message = f"{message} {cli_hint}" if cli_hint else str(self)

    def __reduce__(self) -> tuple[type[MinifastError], tuple[str], dict[str, object]]:
        return type(self), (str(self),), self.__dict__


class CallbackError(MinifastError, TypeError):
    """A callback breaks its contract: an event, a field or a returned value does not exist."""


class DataError(MinifastError, ValueError):
    """The data cannot be used: a missing folder, a broken file, labels that do not match."""


class EmptyEpochError(DataError):
    """A part of the data gives no batch in an epoch."""


class DownloadError(MinifastError, OSError):
    """An archive cannot be downloaded, is not the expected one, or would write outside its folder."""


class FileFormatError(MinifastError, ValueError):
    """A saved file is incomplete, has another format, or holds more than tensors and plain values."""


class NonFiniteLossError(MinifastError, ArithmeticError):
    """The training loss is NaN or infinite; the message names the batch and the layer."""
