"""What the parts of ``Learner``, each in a file of its own, have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from minifast.learner import Learner


class Part:
    """A part of ``Learner``, which knows that it is one."""

    @property
    def _learner(self) -> Learner:
        return cast("Learner", self)
