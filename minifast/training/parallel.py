"""A run over several processes: each works on its share of a batch, and all see the results of the whole batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minifast.data.resume import RemainingBatches
from minifast.data.shards import Shards
from minifast.distributed.agreement import check_same, shapes_of
from minifast.distributed.exchange import (
    add_up,
    agree,
    average_gradients,
    broadcast,
    broadcast_tensors,
    gather,
    gather_rows,
)
from minifast.distributed.group import Group, current_group, guarded
from minifast.distributed.sharding import is_sharded, shard_model
from minifast.errors import MinifastError
from minifast.losses import is_summed, loss_weight
from minifast.model_loss import ModelLoss
from minifast.training.batch_checks import check_normalization
from minifast.training.callback import Callback
from minifast.training.groups import loss_module
from minifast.training.lazy import initialize_lazy
from minifast.training.same_weights import SAME_SCRIPT, WeightsCheck, check_same_weights, named_tensors
from minifast.training.state import State
from minifast.utils.random import get_rng_states, set_rng_states, states_for_rank
from minifast.utils.tensors import count_samples, first_dimension, map_tensors

if TYPE_CHECKING:
    from minifast.learner.learner import Learner

# What a callback may return that all processes must know.
FLAGS = ("stop_epoch", "stop_training", "skip_bwd", "skip_step", "skip_zero", "skip_validate")
NUMBERS = ("epoch", "n_epochs")
VALUES = ("last_metrics", "on_nan")


def group_of(learn: Learner) -> Group | None:
    """Return the processes that train a learner together, or None for a single one."""
    return current_group() if learn.distributed else None


def share_model(learn: Learner) -> None:
    """Give the model and the loss of a new learner the weights of process 0, and with ``sync_bn`` shared BatchNorm.

    Raises:
        MinifastError: ``sync_bn`` is set, and the device is not a GPU.
    """
    if group_of(learn) is None:
        return
    if learn.sync_bn:
        if learn.data.device.type != "cuda":
            raise MinifastError(
                f"`sync_bn=True` needs GPUs, because torch's SyncBatchNorm has no {learn.data.device.type} version; "
                f"leave it out: each process then normalizes its share of a batch by itself."
            )
        converted: Any = nn.SyncBatchNorm.convert_sync_batchnorm(learn.model)  # type: ignore[no-untyped-call]
        learn.model = converted
    tensors = named_tensors(learn)
    check_same({"the model": shapes_of(tensors)}, SAME_SCRIPT)
    broadcast_tensors([*tensors.values()])


def shard(learn: Learner, blocks: Sequence[nn.Module] | None) -> None:
    """Shard the model of a learner over the processes.

    Raises:
        MinifastError: there is one process only, or the model is sharded already.
    """
    group = group_of(learn)
    if group is None:
        raise MinifastError("shard() needs several processes; start the script with torchrun.")
    if is_sharded(learn.model):
        raise MinifastError("The model is sharded already; call shard() once, before training.")
    initialize_lazy(learn)
    broadcast_tensors([*named_tensors(learn).values()])
    groups = learn.layer_groups
    shard_model(learn.model, blocks, learn.data.device, group)
    learn.layer_groups = groups  # the same modules, with other parameters
    learn.opt = None


class Parallel:
    """What a run needs to work over several processes; a context manager around the run.

    While it is active it is ``learn.parallel``. In training, torch's DistributedDataParallel runs the model and
    averages the gradients; ``learn.model`` stays the model itself. Where the first batch leaves a parameter without a
    gradient, or steps accumulate gradients, they are averaged after the backward pass instead.

    Args:
        learn: the learner.
        state: the state of the loop.
        group: the processes.
        call: the method with its arguments, which must be the same in all processes.
        trains: whether the run trains; otherwise it validates or predicts.
        accumulates: whether optimizer steps take several batches, whose gradients are averaged once.
    """

    def __init__(
        self,
        learn: Learner,
        state: State,
        group: Group,
        call: dict[str, Any],
        trains: bool = False,
        accumulates: bool = False,
    ) -> None:
        self.learn = learn
        self.state = state
        self.group = group
        self.call = call
        self.trains = trains
        self.accumulates = accumulates
        self.weight: Any = 0  # of the whole batch's loss, see loss_weight
        self.callbacks: list[Callback] = [BatchGatherer(self)]
        if self.trains:
            self.callbacks += [GradientAverager(self), WeightsCheck(learn, group)]
        self._shards: Any = None
        self._sharded = is_sharded(learn.model)  # then torch's FSDP2 averages the gradients
        self._wrapped: Any = None  # the model in DistributedDataParallel
        self._trainable: list[int] = []  # ids of the trainable parameters
        self._all_used: bool | None = None  # whether the first batch gave each of them a gradient

    def __reduce__(self) -> Any:
        return type(None), ()  # a copy of the learner is not in a run

    def __enter__(self) -> Parallel:
        self._exit = ExitStack()
        self._exit.enter_context(guarded(self.group))
        self._exit.enter_context(self._explained())
        with ExitStack() as failing:
            failing.push(self._exit.__exit__)
            self._before, self.learn.parallel = self.learn.parallel, self
            self._exit.callback(self._restore)
            self.state.split = self._split
            if self.trains:
                broadcast_tensors([*named_tensors(self.learn).values()])
                set_rng_states(states_for_rank(broadcast(get_rng_states()), self.group.rank))
                self._exit.push(self._check_end)
            else:
                check_same_weights(self.learn, self.group, f"when {self.call['method']} begins", self.call)
                broadcast_tensors([*named_tensors(self.learn, parameters=False).values()])
            failing.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.__exit__(kind, error, trace)
        if self.trains and current_group() is self.group:  # also after an error that all processes have
            set_rng_states(broadcast(get_rng_states()))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise the reason in place of an error of a share of the batch that is too small."""
        try:
            yield
        except ValueError as error:
            if self._shards is not None:
                check_normalization(error, self._shards.counts, self.group.rank)
            raise

    def _check_end(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            check_same_weights(self.learn, self.group, "at the end of the run")

    def _restore(self) -> None:
        self.learn.parallel = self._before
        self.state.split = None
        self.unwrap()

    def _split(self, batches: Any) -> Shards:
        if isinstance(batches, RemainingBatches):
            shards = Shards(batches.loader, self.group, batches.done, batches.on_start)
        else:
            shards = Shards(batches, self.group)
        self._shards = shards
        return shards

    @property
    def has_samples(self) -> bool:
        """Whether this process has samples of the current batch, not a stand-in for none."""
        return bool(self._shards.has_samples)

    def model_for_pass(self) -> Any:
        """Return what runs the forward pass: in training the model in DistributedDataParallel."""
        model = self.learn.model
        if self._sharded or not self.trains or self.accumulates or not torch.is_grad_enabled():
            return model
        trainable = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
        if trainable != self._trainable:  # at the first batch, and where layers are unfrozen during a fit
            self.unwrap()
            self._trainable, self._all_used = trainable, None
        if self._wrapped is None and self._all_used:
            self._wrapped = wrap(model)
        return model if self._wrapped is None else self._wrapped

    def unwrap(self) -> None:
        """Let gradients stay those of this process's share."""
        if self._wrapped is not None:
            # Torch may keep the wrapper alive, and its reducer would react to gradients until it is freed.
            vars(self._wrapped).clear()
            self._wrapped = None

    def whole_loss(self, loss: Any) -> Any:
        """Return the loss of the whole batch, of which ``loss`` is the share of this process.

        Its gradient is that of the share, scaled so that the mean of the gradients over the processes is the gradient
        of the whole batch's loss.
        """
        state, loss_func = self.state, self.learn.loss_func
        if not state.train or not isinstance(loss, Tensor) or loss.numel() != 1:
            return loss
        weight = torch.as_tensor(self._own_weight(), dtype=torch.float64).to(loss.device)
        value = torch.where(weight == 0, 0, weight * loss.detach().double().reshape(()))
        total, weights = add_up(torch.stack([value, weight])).unbind()
        scale = weight * self.group.size
        if not is_summed(loss_func):
            total, scale = total / weights, torch.where(weights == 0, 0, scale / weights)
        self.weight = weights.item() if weights.is_cpu else weights
        return _WholeLoss.apply(loss, total.to(loss.dtype).view_as(loss), scale.to(loss.dtype))

    def agree(self, call: Callable[[], Any]) -> Any:
        """Call an event method, and return the changes that it returned in any process."""
        changes = call()
        returned = changes if isinstance(changes, dict) else {}
        names = (*FLAGS, *NUMBERS)
        votes = agree(
            [
                *(int(returned[name]) + 1 if name in returned else 0 for name in names),
                *(int(name in returned) for name in VALUES),
            ]
        )
        if not any(votes):
            return changes
        agreed = {name: vote - 1 for name, vote in zip(names, votes, strict=False) if vote}
        agreed = {name: bool(value) if name in FLAGS else value for name, value in agreed.items()}
        if any(votes[len(names) :]):  # those of the first process that returned some
            own = {name: map_tensors(Tensor.cpu, returned[name]) for name in VALUES if name in returned}
            agreed |= next(values for values in gather(own) if values)
        return {**returned, **agreed}

    def gather(self) -> None:
        """Replace outputs and targets of this process's share by those of the whole batch."""
        state = self.state
        n = count_samples(state.last_target, state.last_input)
        values = [state.last_output, state.last_target]
        if first_dimension(state.last_target) is None and not isinstance(state.last_target, (list, tuple)):
            values.append(state.last_input)  # which counts the samples
        own = self.learn.loss_func if isinstance(self.learn.loss_func, ModelLoss) else None
        loss = self._mean(own.last) if own is not None and isinstance(own.last, Tensor) else None
        # A dict, because a list of two could be taken for a list of two samples.
        gathered = gather_rows(dict(enumerate(values)), n, self.has_samples, self.group)
        state.last_output, state.last_target = gathered[0], gathered[1]
        state.last_input = gathered.get(2, state.last_input)
        if own is not None:
            own.replace(state.last_output, loss)

    def _mean(self, loss: Tensor) -> Tensor:
        """Return the loss of the whole batch, of which each process has the loss of its share."""
        weight = torch.as_tensor(self._own_weight(), dtype=torch.float64).to(loss.device)
        value = torch.where(weight == 0, 0, weight * loss.detach().double().reshape(()))
        total, weights = add_up(torch.stack([value, weight])).unbind()
        return (total / weights).to(loss.dtype)

    def gather_diagnosis(self, lines: list[str]) -> list[str]:
        """Return the sentences on a loss that is not finite, of which each process has those of its share."""
        if not self._own_weight() and self.weight:  # what is wrong with a share that counts for nothing is no cause
            lines = []
        everyone = gather(lines)
        if all(theirs == lines for theirs in everyone):
            return lines
        of = f"of {self.group.size}"
        return [f"Process {rank} {of}: {line}" for rank, theirs in enumerate(everyone) for line in theirs]

    def _own_weight(self) -> Any:
        """Return the weight of this process's share in the loss of the batch."""
        state = self.state
        return loss_weight(self.learn.loss_func, state.last_target, state.last_input) if self.has_samples else 0

    def after_backward(self, skip_bwd: bool, skip_step: bool) -> None:
        """Average the gradients that DistributedDataParallel does not, and share the buffers of process 0."""
        model, loss = self.learn.model, loss_module(self.learn.loss_func)
        own = [parameter for parameter in model.parameters() if parameter.requires_grad]
        unused = [parameter for parameter in own if parameter.grad is None]
        averages = not (skip_step if self.accumulates else skip_bwd)
        if averages and unused and self._wrapped is not None:  # other processes may wait for its gradient
            names = [name for name, parameter in model.named_parameters() if parameter is unused[0]]
            raise MinifastError(
                f"The parameter {names[0]} has no gradient in this batch, but it had one before: the model does not "
                f"use it in each batch. Several processes need a gradient in all batches or in none; where it is not "
                f"used, add 0 times its sum to the output."
            )
        broadcast_tensors([*model.buffers()])
        if not averages:
            return
        ids = set(map(id, own))
        others = [p for p in loss.parameters() if id(p) not in ids and p.requires_grad] if loss is not None else []
        if self._sharded or self._wrapped is not None:
            average_gradients(others)
            return
        average_gradients([*own, *others])
        if self._all_used is None and not self.accumulates:
            self._all_used = not any(agree([bool(unused)]))


class _WholeLoss(torch.autograd.Function):
    """A loss with another value, whose gradient is scaled."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, value: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (scale,) = ctx.saved_tensors
        return gradients[0] * scale, None, None


class BatchGatherer(Callback):
    """Let the callbacks of a validation see whole batches."""

    _order = -1_000_000

    def __init__(self, parallel: Parallel) -> None:
        self._parallel = parallel

    def on_loss_begin(self, train: bool) -> None:
        """Gather the outputs and targets of all processes."""
        if not train:
            self._parallel.gather()


class GradientAverager(Callback):
    """Let the callbacks that read gradients see those of the whole step."""

    _order = -39  # after AccumulateScheduler, before MixedPrecision unscales them

    def __init__(self, parallel: Parallel) -> None:
        self._parallel = parallel

    def on_backward_end(self, skip_bwd: bool, skip_step: bool) -> None:
        """Average the gradients."""
        self._parallel.after_backward(skip_bwd, skip_step)


def wrap(model: nn.Module) -> nn.Module:
    """Return a model in torch's DistributedDataParallel, which shares no buffers by itself."""
    from torch.nn.parallel import DistributedDataParallel

    known = inspect.signature(DistributedDataParallel).parameters
    unwanted = ["forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers", "init_sync"]
    options: dict[str, Any] = {name: False for name in unwanted if name in known}
    return DistributedDataParallel(model, **options)
