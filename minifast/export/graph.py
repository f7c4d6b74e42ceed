"""A model as a program: the steps that torch.export finds in it, in plain values that are read without running code."""

from __future__ import annotations

import io
import logging
import math
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from minifast.errors import DataError, FileFormatError, MinifastError

# What a program does with sizes; all else that it does is one of torch's core operators.
ON_SIZES: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "getitem")},
    **{name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{name: getattr(torch, name) for name in ("sym_int", "sym_float", "sym_max", "sym_min", "sym_not")},
    **{name: getattr(math, name) for name in ("ceil", "floor", "trunc")},
}


KINDS: dict[str, type] = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


BESIDE_CORE = (
    "aten.adaptive_max_pool2d.default",
    "aten.adaptive_max_pool3d.default",
    "aten.scaled_dot_product_attention.default",  # in one piece it is faster than in its parts
)


class Value(int):
    """The number of an earlier value: an input, a tensor of the program, or what a step returned."""

    __slots__ = ()


class OnDevice:
    """Stands for the device that the inputs are on."""


ON_DEVICE = OnDevice()


def operator_named(name: Any) -> Callable[..., Any] | None:
    """Return what a step of a program may do by its name; None for all but core operators that change no argument.

    >>> operator_named("aten.relu.default")(torch.tensor([-1.0, 1.0]))
    tensor([0., 1.])
    >>> operator_named("aten.relu_.default"), operator_named("os.system"), operator_named("aten.from_file.default")
    (None, None, None)
    """
    if not isinstance(name, str):
        return None
    if name in ON_SIZES:
        return ON_SIZES[name]
    parts = re.fullmatch(r"aten\.(\w+)\.(\w+)", name)
    found: Any = getattr(getattr(torch.ops.aten, parts[1], None), parts[2], None) if parts else None
    if not isinstance(found, torch._ops.OpOverload) or found._schema.is_mutable:
        return None
    return found if torch.Tag.core in found.tags or name in BESIDE_CORE else None


class Program(nn.Module):
    """Runs the steps of a model that ``trace`` wrote down: for predictions, with batches of any size, on any device.

    It holds tensors, numbers and the names of core operators of ``torch.ops.aten``, so making one from what a file
    says runs no code of the file's.

    Args:
        plain: ``{"inputs": [(shape of an item, dtype), …], "tensors": […], "steps": [(operator, arguments, keywords),
            …], "output": number}``. In arguments a list says what it is by its first element: ``["value", i]`` for the
            i-th of inputs, tensors and results, counted in this order; ``["list", …]``, ``["dtype", "float32"]``,
            ``["device"]``.

    Raises:
        FileFormatError: that is no program.

    >>> program = trace(nn.Linear(2, 1), (torch.zeros(2, 2),))
    >>> program(torch.zeros(7, 2)).shape, [step[0] for step in program.plain()["steps"]]
    (torch.Size([7, 1]), ['aten.permute.default', 'aten.addmm.default'])
    """

    def __init__(self, plain: Any) -> None:
        super().__init__()
        try:
            self.inputs = [([int(side) for side in shape], str(dtype)) for shape, dtype in plain["inputs"]]
            self._dtypes = [_named("dtype", dtype) for _, dtype in self.inputs]
            for i, tensor in enumerate(plain["tensors"]):
                self.register_buffer(f"tensor{i}", tensor)
            self.steps = [(str(name), args, kwargs) for name, args, kwargs in plain["steps"]]
            known = len(self.inputs) + len(plain["tensors"])
            self._calls = [
                self._call(name, args, kwargs, known + i) for i, (name, args, kwargs) in enumerate(self.steps)
            ]
            self.output = _read(["value", plain["output"]], known + len(self.steps))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise FileFormatError(f"This is no model that learn.export wrote: {error!r}.") from error
        self._first_tensor = len(self.inputs)
        # A value is let go of after the last step that reads it.
        last = {value: i for i, (_, args, kwargs) in enumerate(self._calls) for value in _values((args, kwargs))}
        self._done: list[list[Value]] = [[] for _ in self._calls]
        for value, i in last.items():
            if value != self.output:
                self._done[i].append(value)

    @staticmethod
    def _call(name: str, args: Any, kwargs: Any, known: int) -> tuple[Callable[..., Any], list[Any], dict[str, Any]]:
        function = operator_named(name)
        if function is None:
            raise FileFormatError(f"The model's file asks for {name}, which is none of torch's core operators.")
        return function, [_read(one, known) for one in args], {str(k): _read(one, known) for k, one in kwargs.items()}

    def plain(self) -> dict[str, Any]:
        """Return what the program was made from, for a file: tensors and plain values."""
        tensors = [tensor.detach() for tensor in self.buffers()]
        return {"inputs": self.inputs, "tensors": tensors, "steps": self.steps, "output": int(self.output)}

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the model's output for a batch."""
        if len(inputs) != len(self.inputs):
            raise DataError(f"This model takes {len(self.inputs)} inputs and was given {len(inputs)}.")
        for x, (shape, _) in zip(inputs, self.inputs, strict=True):
            if list(x.shape[1:]) != shape:
                raise DataError(
                    f"This model takes items of shape {_shape(shape)}, as those that it was exported with, and was "
                    f"given one of shape {_shape(x.shape[1:])}; bring it to that shape, or export with other data."
                )
        device = inputs[0].device
        values: dict[int, Any] = dict(enumerate(x.to(d) for x, d in zip(inputs, self._dtypes, strict=True)))
        values |= dict(enumerate(self.buffers(), self._first_tensor))
        for number, ((function, args, kwargs), done) in enumerate(
            zip(self._calls, self._done, strict=True), start=len(values)
        ):
            filled = {name: _fill(one, values, device) for name, one in kwargs.items()}
            values[number] = function(*[_fill(one, values, device) for one in args], **filled)
            for value in done:
                del values[value]
        output: Tensor = values[self.output]
        return output

    def extra_repr(self) -> str:
        """Say how much it is, in a line."""
        shapes = ", ".join(f"n × {_shape(shape)}" for shape, _ in self.inputs)
        return f"takes {shapes}; {len(self.steps)} steps"


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape)) or "()"


def _named(kind: str, name: Any) -> Any:
    value = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(value, KINDS[kind]):
        raise ValueError(f"{name!r} is no {kind}")  # noqa: TRY004 - of a file, not of a caller
    return value


def _read(value: Any, known: int) -> Any:
    """Turn an argument as a file has it into what a step works with; ``known`` values come before the step."""
    if not isinstance(value, (list, tuple)):
        if value is not None and type(value) not in (bool, int, float, str):
            raise ValueError(f"{type(value).__name__} is no argument")
        return value
    kind, *rest = value
    if kind == "list":
        return [_read(one, known) for one in rest]
    if kind == "device":
        return ON_DEVICE
    (only,) = rest
    if kind != "value":
        return _named(kind, only)
    if type(only) is not int or not 0 <= only < known:
        raise ValueError(f"there is no value {only!r} yet")
    return Value(only)


def _values(value: Any) -> Iterator[Value]:
    if isinstance(value, Value):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _values(one)


def _fill(value: Any, values: dict[int, Any], device: torch.device) -> Any:
    if isinstance(value, Value):
        return values[value]
    if isinstance(value, list):
        return [_fill(one, values, device) for one in value]
    return device if value is ON_DEVICE else value


@contextmanager
def torch_is_quiet() -> Iterator[None]:
    """Keep torch's exporters from logging and printing graphs and warnings; what matters comes as an error."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def exported(model: nn.Module, inputs: Sequence[Tensor], name: str = "") -> torch.export.ExportedProgram:
    """Return torch's own program of a model in evaluation mode, for batches of any size.

    Args:
        model: the model, on the device of its inputs.
        inputs: a batch.
        name: what an error calls the model.

    Raises:
        MinifastError: torch.export cannot follow the model, or the model is made for batches of one size.
    """
    inputs = tuple(x if len(x) > 1 else torch.cat([x, x]) for x in inputs)  # a batch of one would be taken for a rule
    batch, shapes = torch.export.Dim("batch"), torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for x in inputs:
        shapes[x] = {0: batch}
    try:
        with torch_is_quiet():
            return torch.export.export(model, inputs, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # whatever the model's code, or torch's, says to values that are not there
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        said = said.partition(" For more information")[0].strip().rstrip(".!")
        raise MinifastError(
            f"torch.export cannot follow {name or type(model).__name__}: {said}. It needs a model whose way depends on "
            f"no value, and that takes batches of any size."
        ) from error


def trace(model: nn.Module, inputs: Sequence[Tensor], name: str = "") -> Program:
    """Write down the steps that a model in evaluation mode takes from ``inputs``, a batch, to its output, one tensor.

    Trace on the CPU: on other devices torch.export chooses operators that only those have.

    Raises:
        MinifastError: torch.export cannot follow the model, or it does what a program cannot.
    """
    name = name or type(model).__name__
    table = torch.export.default_decompositions()
    for kept in BESIDE_CORE:
        table.pop(operator_named(kept), None)  # type: ignore[no-untyped-call]
    with torch_is_quiet():
        found = exported(model, inputs, name).run_decompositions(table)
    signature = found.graph_signature
    if any(spec.kind.name != "USER_OUTPUT" for spec in signature.output_specs):
        raise MinifastError(f"{name} changes what it holds while it predicts, which a program does not.")
    if not found.call_spec.out_spec.is_leaf():
        raise MinifastError(f"{name} returns a tuple, list or dict; a program returns one tensor.")
    *nodes, end = found.graph.nodes
    output = end.args[0][0]
    needed = {output}
    for node in reversed(nodes):  # torch.export keeps assertions, whose results nobody reads
        if node in needed:
            needed.update(node.all_input_nodes)
    kinds = dict(zip(nodes, signature.input_specs, strict=False))
    taken = [node for node, spec in kinds.items() if spec.kind.name == "USER_INPUT"]
    held = [node for node in kinds if node not in taken and node in needed]
    numbers: dict[Any, int] = {node: i for i, node in enumerate([*taken, *held])}
    tensors = []
    for node in held:
        target: Any = kinds[node].target
        tensor = found.state_dict.get(target, found.constants.get(target))
        if not isinstance(tensor, Tensor):
            raise MinifastError(f"{name} holds {target}, which is no tensor.")
        tensors.append(tensor.detach())
    steps = []
    for node in nodes:
        if node.op != "placeholder" and node in needed:
            asked = str(node.target) if isinstance(node.target, torch._ops.OpOverload) else node.target.__name__
            if operator_named(asked) is None:
                raise MinifastError(f"{name} uses {asked}, which is none of torch's core operators.")
            kwargs = {key: _plain(one, numbers) for key, one in node.kwargs.items()}
            steps.append((asked, [_plain(one, numbers) for one in node.args], kwargs))
            numbers[node] = len(numbers)
    takes = [(list(x.shape[1:]), str(x.dtype).removeprefix("torch.")) for x in inputs]
    return Program({"inputs": takes, "tensors": tensors, "steps": steps, "output": numbers[output]})


def _plain(value: Any, numbers: dict[Any, int]) -> Any:
    """Turn a node's argument into what ``_read`` reads."""
    if isinstance(value, torch.fx.Node):
        return ["value", numbers[value]]
    if isinstance(value, (list, tuple)):
        return ["list", *(_plain(one, numbers) for one in value)]
    if isinstance(value, torch.device):
        return ["device"]
    for name, kind in KINDS.items():
        if isinstance(value, kind):
            return [name, str(value).removeprefix("torch.")]
    if value is not None and type(value) not in (bool, int, float, str):
        raise MinifastError(f"The model works with {value!r}, which a file of plain values cannot hold.")
    return value
