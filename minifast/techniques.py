"""The methods of a Learner that choose how it trains: clipping, mixing, precision, compilation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from minifast.callback import Callback
from minifast.callbacks.gradient_clipping import GradientClipping
from minifast.callbacks.mixed_precision import MixedPrecision
from minifast.callbacks.mixup import MixUpCallback
from minifast.data.bunch import DataBunch
from minifast.errors import MinifastError
from minifast.part import Part

if TYPE_CHECKING:
    from minifast.learner import Learner


class Techniques(Part):
    """The part of ``Learner`` that chooses how it trains. Each method returns the learner; the last call counts."""

    data: DataBunch
    model: nn.Module
    callbacks: list[Callback]
    callback_fns: list[Callable[..., Callback]]
    precision: torch.dtype | None

    def clip_grad(self, clip: float = 0.1) -> Learner:
        """Clip the gradients of each step to a norm of ``clip``, see ``GradientClipping``; 0 clips no longer."""
        GradientClipping(clip=clip)  # refuses what is no norm, now and not in the fit
        self._make(partial(GradientClipping, clip=clip))
        return self._learner

    def mixup(self, alpha: float = 0.4, stack_x: bool = False, stack_y: bool = True) -> Learner:
        """Train on mixtures of two items, see ``MixUpCallback``."""
        MixUpCallback(alpha=alpha)
        self._make(partial(MixUpCallback, alpha=alpha, stack_x=stack_x, stack_y=stack_y))
        return self._learner

    def to_fp16(self, loss_scale: float | None = None, max_noskip: int = 1000) -> Learner:
        """Train and predict in float16 where that is safe, see ``MixedPrecision``; weights and losses stay float32."""
        self._set_precision(torch.float16, MixedPrecision(self._learner, loss_scale, max_noskip))
        return self._learner

    def to_bf16(self) -> Learner:
        """Train and predict in bfloat16 where that is safe, by torch's autocast; weights and losses stay float32.

        bfloat16 has float32's range, so no loss needs to be scaled: take it where the device computes with it.
        """
        self._set_precision(torch.bfloat16)
        return self._learner

    def to_fp32(self) -> Learner:
        """Train and predict in float32 again."""
        self._set_precision(None)
        return self._learner

    def compile(self, **options: Any) -> Learner:
        """Compile the model in place, at its first batches; ``options`` are those of ``torch.compile``.

        The names of its parameters stay, so files fit both models that are compiled and those that are not. Learning
        rate and momentum are no part of what is compiled. Training and evaluation are compiled apart, and each once
        more where a first batch of another size comes.

        >>> import torch
        >>> from minifast import *
        >>> items = [(torch.randn(8, 4), torch.randint(2, (8,)))] * 3
        >>> loss = torch.nn.CrossEntropyLoss()
        >>> learn = Learner(DataBunch(items, device="cpu"), simple_ann(4, 2), loss_func=loss, silent=True)
        >>> learn.compile(backend="eager").fit(1, 1e-2)
        """
        self.model.compile(**options)
        return self._learner

    def _make(self, maker: partial[Any]) -> None:
        """Have a callback made for each fit, in the place of one of its kind."""
        others = [one for one in self.callback_fns if getattr(one, "func", one) is not maker.func]
        self.callback_fns[:] = [*others, maker]

    def _set_precision(self, dtype: torch.dtype | None, *scaling: Callback) -> None:
        kind = self.data.device.type
        if dtype is not None and not torch.amp.is_autocast_available(kind):
            raise MinifastError(f"torch has no autocast on {kind}; stay with float32 there.")
        self.callbacks[:] = [*(one for one in self.callbacks if not isinstance(one, MixedPrecision)), *scaling]
        self.precision = dtype
