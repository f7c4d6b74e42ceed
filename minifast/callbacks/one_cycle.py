"""The 1cycle policy as a callback."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from minifast.callbacks.scheduler import ScheduledParameters
from minifast.schedules.annealing import Schedule, Value
from minifast.schedules.one_cycle import POLICIES, whole_batches
from minifast.utils.aliases import accept_aliases
from minifast.utils.checks import check_count, check_number, check_word

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


MOMS = (0.95, 0.85)  # the default; it gives no warning for an optimizer without momentum


def check_moms(moms: Any) -> tuple[float, float]:
    """Return ``moms`` as (high, low); one number is used for both."""
    if isinstance(moms, str) or not hasattr(moms, "__len__"):
        moms = (moms, moms)
    if len(moms) != 2:
        raise ValueError(
            f"`moms` must have two values, the high and the low momentum, such as (0.95, 0.85); got {len(moms)}."
        )
    high, low = (check_number("each of moms", mom, low=0, high=1) for mom in moms)
    return high, low


class OneCycleScheduler(ScheduledParameters):
    """Set learning rate and momentum by the 1cycle policy over ``tot_epochs`` epochs.

    In phase 1 the learning rate rises on a line from ``lr_max / div_factor`` to ``lr_max``. The momentum falls from
    ``moms[0]`` to ``moms[1]``. Phase 1 takes ``pct_start`` of the batches, rounded down to whole batches. In phase 2
    the learning rate falls on a cosine to 0, or to ``lr_max / final_div``, and the momentum rises back.

    The cycle sets the momentum (``betas[0]`` of Adam's family) for the length of the fit, whatever ``opt_func`` set;
    the other arguments of ``opt_func``, such as ``betas[1]``, stay.

    Args:
        learn: the learner.
        lr_max: the maximum learning rate, see ``lr_find``; or one per layer group.
        moms: the high and the low momentum; one number stays constant, as in fastai v1. Ignored if the optimizer works
            without momentum.
        div_factor: the first learning rate is ``lr_max / div_factor``.
        pct_start: the fraction of the batches in phase 1, in [0, 1]; by default 0.3.
        final_div: end at ``lr_max / final_div`` instead of 0.
        tot_epochs: the length of the cycle in epochs, if it is longer than this fit.
        start_epoch: the epoch to start at, if earlier epochs are already trained.
        warmup: ``"linear"``, or ``"cosine"`` for the phase 1 of fastai v1's code.
        policy: ``"one_cycle"``; ``"three_phases"``, Smith's original, with a ``pct_start`` of 0.45 and at most 0.5; or
            ``"two_halves"``, two lines that leave the momentum unchanged. The last two end at
            ``lr_max / (div_factor * 100)`` by default.

    Raises:
        ValueError, TypeError: an argument is out of range or has the wrong type.

    Source: L. Smith, "A disciplined approach to neural network hyper-parameters" (2018).
    """

    @accept_aliases(max_lr="lr_max")
    def __init__(
        self,
        learn: Learner,
        lr_max: Value,
        moms: tuple[float, float] = (0.95, 0.85),
        div_factor: float = 25.0,
        pct_start: float | None = None,
        final_div: float | None = None,
        tot_epochs: int | None = None,
        start_epoch: int | None = None,
        warmup: str = "linear",
        policy: str = "one_cycle",
    ) -> None:
        super().__init__(learn)
        self.lr_max = learn.lr_range(lr_max, "max_lr")
        self.moms = check_moms(moms)
        self.div_factor = div_factor
        self.policy = check_word("policy", policy, tuple(POLICIES))
        form = POLICIES[policy]
        share = form.pct_start if pct_start is None else pct_start
        self.pct_start = check_number("pct_start", share, low=0, high=1)
        self.final_div = final_div
        self.tot_epochs = None if tot_epochs is None else check_count("tot_epochs", tot_epochs)
        self.start_epoch = None if start_epoch is None else check_count("start_epoch", start_epoch, least=0)
        self.warmup = warmup
        if policy != "one_cycle" and warmup != "linear":
            raise ValueError(
                f"`warmup` must be 'linear' with policy={policy!r}, got {warmup!r}; or use policy='one_cycle'."
            )
        if form.mom is None and self.moms != MOMS:
            raise ValueError(f"`moms` is {moms}, but policy={policy!r} leaves the momentum alone; remove `moms`.")
        self._momentum_is_explicit = self.moms != MOMS
        self.controls = tuple(self._forms(self.pct_start))

    def plan(self, n_batches: int) -> dict[str, Schedule]:
        """Return the schedules of ``lr`` and ``mom`` for a cycle of ``n_batches``, with the peak on a batch."""
        return self._forms(whole_batches(self.pct_start, n_batches))

    def _forms(self, pct_start: float) -> dict[str, Schedule]:
        form = POLICIES[self.policy]
        shape = {"warmup": self.warmup} if self.policy == "one_cycle" else {}
        plan = {"lr": form.lr(self.lr_max, self.div_factor, pct_start, self.final_div, **shape)}
        if form.mom is not None:
            plan["mom"] = form.mom(self.moms, pct_start, **shape)
        return plan

    def on_train_begin(self, n_epochs: int, epoch: int) -> dict[str, int] | None:
        """Plan the cycle, set the first values, and start at ``start_epoch`` if given."""
        if self.start_epoch is not None:
            epoch = self.start_epoch
        tot_epochs = n_epochs if self.tot_epochs is None else self.tot_epochs
        self.check_start(epoch, n_epochs)
        if tot_epochs < n_epochs:
            raise ValueError(f"`tot_epochs` must be at least the {n_epochs} epochs of the fit, got {tot_epochs}.")
        n_batches = len(self.learn.data.train_dl) * tot_epochs
        self.begin(self.plan(n_batches), n_batches)
        self.jump_to_epoch(epoch)
        return None if self.start_epoch is None else {"epoch": epoch}


@accept_aliases(max_lr="lr_max")
def one_cycle_scheduler(lr_max: Value, **kwargs: Any) -> partial[OneCycleScheduler]:
    """Return a function for ``callback_fns`` that makes each ``fit`` one cycle.

    Args:
        lr_max: the maximum learning rate.
        kwargs: further arguments of ``OneCycleScheduler``.

    >>> import torch
    >>> from minifast import DataBunch, Learner, simple_ann
    >>> items = [(torch.randn(8, 4), torch.randint(2, (8,)))] * 10
    >>> data = DataBunch(items, device="cpu", classes=["a", "b"])
    >>> learn = Learner(data, simple_ann(4, 2), callback_fns=one_cycle_scheduler(1e-2, pct_start=0.5), silent=True)
    >>> _ = learn.fit(1)
    >>> learn.recorder.lrs.index(max(learn.recorder.lrs))
    5
    """
    return partial(OneCycleScheduler, lr_max=lr_max, **kwargs)
