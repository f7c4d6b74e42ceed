"""The loss that a model returns itself, as models of Hugging Face do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from minifast.errors import DataError
from minifast.utils.tensors import as_arguments, as_list, call_model, forward_of

IGNORED = -100  # the class number that the models of Hugging Face leave out of their loss


class ModelLoss:
    """Use the ``loss`` in the model's output; metrics and predictions get its ``logits``.

    The model gets the targets as a keyword argument, beside the inputs of the batch, which are a dict. Its output is an
    object or a dict with ``loss`` and ``logits``, such as a ``ModelOutput`` of transformers. ``Learner`` uses this loss
    by default for batches that are dicts and a model whose ``forward`` takes ``labels``.

    The validation loss weights each batch by what its loss is a mean over. **For integer targets that is assumed to be
    the number of targets that are not -100**, in a model for the next token without the first of each sequence; for
    float targets the number of elements, and without targets the number of samples.

    Args:
        target: the keyword argument of the targets, or several, or None for a model that needs no targets.
        model: the model, which says whether it predicts the next token, and the activation of its logits.

    Raises:
        DataError: when it is called for other outputs than those of the last batch, or the model returned no loss.

    >>> import torch
    >>> ModelLoss("labels").add_targets({"x": torch.zeros(2, 3)}, torch.tensor([0, 1]))["labels"]
    tensor([0, 1])
    """

    reduction = "mean"
    ignore_index = IGNORED

    def __init__(self, target: str | Sequence[str] | None = "labels", model: nn.Module | None = None) -> None:
        self.target = as_list(target)
        name = type(model).__name__
        # transformers compares the logits of each position with the label of the next one.
        self.next_token = getattr(model, "loss_type", None) == "ForCausalLM" or name.endswith(
            ("ForCausalLM", "LMHeadModel")
        )
        self._config = getattr(model, "config", None)
        self._name = name
        self._loss: Any = None
        self._output: Any = None

    def __repr__(self) -> str:
        return f"the loss that {self._name} returns" if self._config is not None else "the loss that the model returns"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_loss": None, "_output": None}  # of a batch

    def add_targets(self, inputs: Any, targets: Any) -> Any:
        """Return the inputs with the targets, as the keyword arguments of the model."""
        if targets is None or not self.target:
            return inputs
        if not isinstance(inputs, dict):
            raise DataError(
                f"The model takes its targets as the argument {self.target[0]!r} beside named inputs, but the inputs "
                f"are a {type(inputs).__name__}; let batches be dicts, or pass `loss_func`."
            )
        values = targets if len(self.target) > 1 else [targets]
        return {**inputs, **dict(zip(self.target, values, strict=True))}

    def logits(self, output: Any) -> Any:
        """Keep the loss in the model's output, and return the output without it."""
        self._loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        self._output = output
        if isinstance(output, Mapping):
            rest = {name: value for name, value in output.items() if name != "loss"}
            self._output = rest.get("logits", next(iter(rest.values())) if len(rest) == 1 else rest)
        elif not isinstance(output, Tensor):
            self._output = getattr(output, "logits", output)
        return self._output

    def __call__(self, output: Any, *targets: Any) -> Any:
        """Return the loss of the last batch."""
        loss, own = self._loss, self._output
        self._loss = self._output = None
        if own is None or output is not own:
            raise DataError(
                "The model computes its loss itself, for a whole batch and the outputs as it returns them; pass "
                "`loss_func`, such as nn.CrossEntropyLoss(), for the loss of other outputs."
            )
        if loss is None:
            raise DataError(
                f"The loss should come from the model, but its output, a {type(output).__name__}, came without `loss`; "
                f"pass `loss_func`, or let the model return a dict with 'loss' and 'logits'."
            )
        return loss

    def replace(self, output: Any, loss: Any) -> None:
        """Take other outputs and their loss in place of those of the last batch."""
        self._output, self._loss = output, loss

    @property
    def last(self) -> Any:
        """The loss of the last batch, before it is asked for."""
        return self._loss

    def weigh(self, targets: Any) -> Tensor | int | None:
        """Return what the loss of a batch is a mean over, or None where the samples count."""
        values = as_arguments(targets)
        target = values[0] if len(values) else None
        if not isinstance(target, Tensor):
            return None
        if target.is_floating_point():
            return target.numel()
        counted = target[:, 1:] if self.next_token and target.ndim > 1 else target
        total = (counted != IGNORED).sum()
        return int(total) if total.is_cpu else total

    @property
    def is_classification(self) -> bool:
        """Whether the loss is known to be the cross entropy of class numbers, by the model's ``config``."""
        return self.activation == "softmax_last" and not self.next_token

    @property
    def activation(self) -> str:
        """The activation of the logits, from the ``config`` of a model of transformers; ``"none"`` without one."""
        kind = getattr(self._config, "problem_type", None)
        if kind is None and self._name.endswith("Classification"):
            kind = "regression" if getattr(self._config, "num_labels", 1) == 1 else "single_label_classification"
        named = {"single_label_classification": "softmax_last", "multi_label_classification": "sigmoid"}
        return named.get(str(kind), "softmax_last" if self.next_token else "none")


def own_loss(model: nn.Module, target: str | Sequence[str] | None) -> ModelLoss | None:
    """Return the loss of a model whose ``forward`` takes the targets, or None for another model.

    Args:
        model: the model.
        target: the names of the targets, by default ``"labels"`` or ``"label"``.

    >>> own_loss(nn.Linear(2, 2), None) is None
    True
    """
    try:
        known = inspect.signature(forward_of(model)).parameters
    except (TypeError, ValueError):
        return None
    wanted = as_list(target) or [name for name in ("labels", "label") if name in known][:1]
    return ModelLoss(wanted, model) if wanted and all(name in known for name in wanted) else None


def forward(
    model: Any,
    loss_func: Any,
    inputs: Any,
    targets: Any = None,
    like: Any = None,
    convert: Callable[[Any], Any] | None = None,
) -> Any:
    """Return the output of a model for a batch; the model gets the targets only if it returns its own loss.

    Args:
        model: the model, or a wrapper around it.
        loss_func: the loss of the learner.
        inputs: the inputs of the batch.
        targets: its targets, or None.
        like: the model itself, where ``model`` is a wrapper.
        convert: a function of the output without its loss, and of the loss.
    """
    own = isinstance(loss_func, ModelLoss)
    output = call_model(model, loss_func.add_targets(inputs, targets) if own else inputs, like)
    output = loss_func.logits(output) if own else logits_of(output)
    if convert is not None:
        output = convert(output)
        if own:
            loss_func.replace(output, convert(loss_func.last))
    return output


def logits_of(output: Any) -> Any:
    """Return the ``logits`` of a model's output that is an object with them, any other output as it is."""
    if isinstance(output, (Tensor, tuple, list)):
        return output
    logits = getattr(output, "logits", None)
    return output if logits is None else logits
