"""Delay Ctrl-C until a state is complete."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class DelayedInterrupt:
    """Delay the first Ctrl-C between ``hold`` and ``release``; a second one raises ``KeyboardInterrupt`` at once.

    It acts between ``start`` and ``stop``, in the main thread, and only where Ctrl-C has Python's own handler.

    Attributes:
        pending: a Ctrl-C waits for ``release``.
    """

    def __init__(self) -> None:
        self.pending = False
        self._holds = False

    def start(self) -> None:
        """Take over the handler of Ctrl-C."""
        self.pending = self._holds = False
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)

    def stop(self) -> None:
        """Restore the handler of Ctrl-C."""
        if signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def hold(self) -> None:
        """Delay a Ctrl-C from now on."""
        self._holds = True

    def release(self) -> None:
        """Delay it no longer, and raise a ``KeyboardInterrupt`` if one waits."""
        self._holds = False
        if self.pending:
            self.pending = False
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._holds or self.pending:
            signal.default_int_handler(number, frame)
        self.pending = True
