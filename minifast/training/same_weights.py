"""Check that the processes that train a learner together still have the same model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from minifast.distributed.agreement import checksums, compare, first_difference, sums_and_norms
from minifast.distributed.exchange import gather
from minifast.distributed.group import Group
from minifast.distributed.sharding import is_sharded
from minifast.errors import MinifastError
from minifast.training.callback import Callback
from minifast.training.groups import loss_module

if TYPE_CHECKING:
    from minifast.learner.learner import Learner

SAME_SCRIPT = (
    "All processes run the same script on the same data, so this is random, or depends on the rank. Call set_seed(0) "
    "at the start of the script, or give what is random a seed; and pass the same arguments, model and data in each "
    "process."
)


def named_tensors(learn: Learner, parameters: bool = True, buffers: bool = True) -> dict[str, Tensor]:
    """Return the parameters and buffers of the model and of the loss function, but none that is sharded or lazy."""
    modules = {"": learn.model, "loss_func.": loss_module(learn.loss_func)}
    named = {
        prefix + name: tensor
        for prefix, module in modules.items()
        if module is not None
        for name, tensor in (
            *(module.named_parameters() if parameters else ()),
            *(module.named_buffers() if buffers else ()),
        )
    }
    return {name: t for name, t in named.items() if not nn.parameter.is_lazy(t) and not is_sharded(t)}


def as_values(call: dict[str, Any]) -> dict[str, Any]:
    """Return a call with its arguments as values to compare.

    >>> as_values({"method": "fit", "epochs": 3})
    {'the method': 'fit', 'fit': {'epochs': 3}}
    """
    return {"the method": call["method"], call["method"]: {k: v for k, v in call.items() if k != "method"}}


def check_same_weights(learn: Learner, group: Group | None, when: str, call: dict[str, Any] | None = None) -> None:
    """Check that the processes that train a learner together have the same weights; all of them must call it.

    Where checksums of all bits are equal, nothing else is computed. Where one differs, a parameter may differ by
    rounding, as on GPUs of different kinds, but not by more. Buffers are not compared: running statistics are those of
    process 0, by rule.

    Args:
        learn: the learner.
        group: the processes, or None for a single one.
        when: the time, for the message.
        call: the call in which this happens, whose arguments must be the same too.

    Raises:
        MinifastError: a parameter or an argument differs.
    """
    if group is None:
        return
    values: dict[str, Any] = {} if call is None else as_values(call)
    tensors = named_tensors(learn, buffers=False)
    first, *others = gather({**values, "weights": checksums(tensors)})
    bits = [theirs.pop("weights", {}) for theirs in (first, *others)]
    compare([first, *others], SAME_SCRIPT)
    if all(theirs == bits[0] for theirs in bits):
        return
    unequal = {name: t for name, t in tensors.items() if any(theirs.get(name) != bits[0].get(name) for theirs in bits)}
    ours, *sums = gather(sums_and_norms(unequal))
    for rank, theirs in enumerate(sums, 1):
        if (name := first_difference(ours, theirs)) is not None:
            raise MinifastError(
                f"The parameter {name} differs in process 0 and process {rank} {when}: a callback, the optimizer, the "
                f"model or the script changed it at random or in one process only. Let each process change it alike: "
                f"with random numbers from a generator that is seeded alike, torch.Generator().manual_seed(0), and not "
                f"under `if rank == 0`."
            )


class WeightsCheck(Callback):
    """Compare the weights after the callbacks of an epoch, also those that are called last."""

    _order = 1_000_000

    def __init__(self, learn: Learner, group: Group) -> None:
        self._learn = learn
        self._group = group

    def on_epoch_end(self, epoch: int) -> None:
        """Check that steps and callbacks changed the weights alike."""
        check_same_weights(self._learn, self._group, f"at the end of epoch {epoch}")
