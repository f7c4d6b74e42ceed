"""Leslie Smith's 1cycle policy."""

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


MOMS = (0.95, 0.85)  # the default, of which nothing is said where there is no momentum


def check_moms(moms: Any) -> tuple[float, float]:
    """Return ``moms`` as (high, low); one number stands for both."""
    if isinstance(moms, str) or not hasattr(moms, "__len__"):
        moms = (moms, moms)
    if len(moms) != 2:
        raise ValueError(
            f"moms has {len(moms)} values; it must be two, the high and the low one, such as (0.95, 0.85)."
        )
    high, low = (check_number("each of moms", mom, low=0, high=1) for mom in moms)
    return high, low


class OneCycleScheduler(ScheduledParameters):
    """Sets learning rate and momentum by the 1cycle policy over ``tot_epochs`` epochs.

    Phase 1: the rate goes in a line from ``lr_max / div_factor`` to ``lr_max`` over the first ``pct_start`` of the
    batches (a whole number of them, rounded down), the momentum from ``moms[0]`` to ``moms[1]``. Phase 2: the rate goes
    down a cosine to 0, or to ``lr_max / final_div``, the momentum back.

    Args:
        learn: the learner.
        lr_max: the highest rate, found with ``lr_find``; or one for each layer group.
        moms: the high and the low momentum. An optimizer that works without momentum gets none.
        div_factor: by how much lower than ``lr_max`` the first rate is.
        pct_start: the share of the batches that phase 1 takes, in [0, 1]; by default 0.3.
        final_div: end at ``lr_max / final_div`` instead of 0.
        tot_epochs: the length of the cycle, when it is longer than this fit.
        start_epoch: the epoch to begin at, when the epochs before are done already.
        warmup: ``"linear"``, or ``"cosine"`` for a phase 1 as fastai v1's code has it.
        policy: ``"one_cycle"``; ``"three_phases"``, Smith's original (``pct_start`` 0.45 and at most a half); or
            ``"two_halves"``, two lines, which leaves the momentum alone. Both end at ``lr_max / (div_factor * 100)``
            unless ``final_div`` is given.

    Raises:
        ValueError, TypeError: an argument is out of its range or of the wrong kind.

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
            raise ValueError(f"warmup is {warmup!r}, which {policy} has not; leave it out, or take policy='one_cycle'.")
        if form.mom is None and self.moms != MOMS:
            raise ValueError(f"moms is {moms}, but {policy} leaves the momentum alone; leave moms out.")
        self._momentum_is_meant = self.moms != MOMS
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
        """Plan the cycle, set the first values, and begin at ``start_epoch`` where one is given."""
        if self.start_epoch is not None:
            epoch = self.start_epoch
        tot_epochs = n_epochs if self.tot_epochs is None else self.tot_epochs
        self.check_start(epoch, n_epochs)
        if tot_epochs < n_epochs:
            raise ValueError(f"tot_epochs is {tot_epochs}, less than the {n_epochs} epochs of the fit; raise it.")
        n_batches = len(self.learn.data.train_dl) * tot_epochs
        self.begin(self.plan(n_batches), n_batches)
        self.jump_to_epoch(epoch)
        return None if self.start_epoch is None else {"epoch": epoch}


@accept_aliases(max_lr="lr_max")
def one_cycle_scheduler(lr_max: Value, **kwargs: Any) -> partial[OneCycleScheduler]:
    """Return what makes a ``OneCycleScheduler`` of a learner, for ``callback_fns``: each ``fit`` is then one cycle.

    Args:
        lr_max: the highest rate.
        kwargs: what else ``OneCycleScheduler`` takes.

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
