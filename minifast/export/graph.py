"""A model as a program of plain values, traced by torch.export; reading it runs no code."""

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
from minifast.utils.compat import drop_misnamed_guards
from minifast.utils.text import shape_text

# A program computes sizes with these functions; all other steps are torch's core operators.
SIZE_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "getitem")},
    **{name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{name: getattr(torch, name) for name in ("sym_int", "sym_float", "sym_max", "sym_min", "sym_not")},
    **{name: getattr(math, name) for name in ("ceil", "floor", "trunc")},
}
TYPES: dict[str, type] = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}
MORE_OPERATORS = (
    "aten.adaptive_max_pool2d.default",
    "aten.adaptive_max_pool3d.default",
    "aten.linalg_vector_norm.default",  # torch 2.6 does not decompose it
    "aten.scaled_dot_product_attention.default",  # faster than its decomposition
)


class Value(int):
    """The number of an earlier value: an input, a tensor of the program, or the result of a step."""

    __slots__ = ()


class OnDevice:
    """Stand for the device of the inputs."""


ON_DEVICE = OnDevice()


def operator_named(name: Any) -> Callable[..., Any] | None:
    """Return the operator of a step by its name, or None unless it is a core operator that changes no argument.

    >>> operator_named("aten.relu.default")(torch.tensor([-1.0, 1.0]))
    tensor([0., 1.])
    >>> operator_named("aten.relu_.default"), operator_named("os.system"), operator_named("aten.from_file.default")
    (None, None, None)
    """
    if not isinstance(name, str):
        return None
    if name in SIZE_FUNCTIONS:
        return SIZE_FUNCTIONS[name]
    parts = re.fullmatch(r"aten\.(\w+)\.(\w+)", name)
    overload: Any = getattr(getattr(torch.ops.aten, parts[1], None), parts[2], None) if parts else None
    if not isinstance(overload, torch._ops.OpOverload) or overload._schema.is_mutable:
        return None
    return overload if torch.Tag.core in overload.tags or name in MORE_OPERATORS else None


class Program(nn.Module):
    """Run the steps of a model that ``trace`` recorded: for inference, with batches of any size, on any device.

    A program holds tensors, numbers and names of core operators of ``torch.ops.aten``, so building one from a file runs
    no code of the file.

    Args:
        plain: ``{"inputs": [(shape of a sample, dtype), …], "tensors": […], "steps": [(operator, arguments, keywords),
            …], "output": number}``. In arguments, the first element of a list is its type: ``["value", i]`` is value
            ``i``, counted over inputs, tensors and results; ``["list", …]``, ``["dtype", "float32"]``, ``["device"]``.

    Raises:
        FileFormatError: ``plain`` is not a program.

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
            raise FileFormatError(f"This is not a model of learn.export: {error!r}.") from error
        self._first_tensor = len(self.inputs)
        # Free each value after the last step that reads it.
        last = {value: i for i, (_, args, kwargs) in enumerate(self._calls) for value in _values((args, kwargs))}
        self._done: list[list[Value]] = [[] for _ in self._calls]
        for value, i in last.items():
            if value != self.output:
                self._done[i].append(value)

    @staticmethod
    def _call(name: str, args: Any, kwargs: Any, known: int) -> tuple[Callable[..., Any], list[Any], dict[str, Any]]:
        function = operator_named(name)
        if function is None:
            raise FileFormatError(f"The model's file calls {name}, which is not one of torch's core operators.")
        return (
            function,
            [_read(value, known) for value in args],
            {str(k): _read(value, known) for k, value in kwargs.items()},
        )

    def plain(self) -> dict[str, Any]:
        """Return the program as tensors and plain values, for a file."""
        tensors = [tensor.detach() for tensor in self.buffers()]
        return {"inputs": self.inputs, "tensors": tensors, "steps": self.steps, "output": int(self.output)}

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the model's output for a batch."""
        if len(inputs) != len(self.inputs):
            raise DataError(f"The model takes {len(self.inputs)} inputs, got {len(inputs)}.")
        for x, (shape, _) in zip(inputs, self.inputs, strict=True):
            if list(x.shape[1:]) != shape:
                raise DataError(
                    f"The model takes samples of shape {shape_text(shape)}, got {shape_text(x.shape[1:])}; change "
                    f"their shape, or export the model with other data."
                )
        device = inputs[0].device
        values: dict[int, Any] = dict(enumerate(x.to(d) for x, d in zip(inputs, self._dtypes, strict=True)))
        values |= dict(enumerate(self.buffers(), self._first_tensor))
        for number, ((function, args, kwargs), done) in enumerate(
            zip(self._calls, self._done, strict=True), start=len(values)
        ):
            filled = {name: _fill(argument, values, device) for name, argument in kwargs.items()}
            values[number] = function(*[_fill(argument, values, device) for argument in args], **filled)
            for value in done:
                del values[value]
        output: Tensor = values[self.output]
        return output

    def extra_repr(self) -> str:
        """Return the input shapes and the number of steps."""
        shapes = ", ".join(f"n x {shape_text(shape)}" for shape, _ in self.inputs)
        return f"takes {shapes}; {len(self.steps)} steps"


def _named(kind: str, name: Any) -> Any:
    value = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(value, TYPES[kind]):
        raise ValueError(f"{name!r} is not a {kind}")  # noqa: TRY004 - the value is from a file, not from a caller
    return value


def _read(value: Any, known: int) -> Any:
    """Convert an argument from a file for a step that follows ``known`` values."""
    if not isinstance(value, (list, tuple)):
        if value is not None and type(value) not in (bool, int, float, str):
            raise ValueError(f"{type(value).__name__} is not an argument")
        return value
    kind, *rest = value
    if kind == "list":
        return [_read(element, known) for element in rest]
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
        for element in value.values() if isinstance(value, dict) else value:
            yield from _values(element)


def _fill(value: Any, values: dict[int, Any], device: torch.device) -> Any:
    if isinstance(value, Value):
        return values[value]
    if isinstance(value, list):
        return [_fill(element, values, device) for element in value]
    return device if value is ON_DEVICE else value


@contextmanager
def torch_is_quiet() -> Iterator[None]:
    """Silence the logs, prints and warnings of torch's exporters; their errors still come through."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def exported(model: nn.Module, inputs: Sequence[Tensor], name: str = "") -> torch.export.ExportedProgram:
    """Trace a model in evaluation mode with torch.export, for batches of any size.

    Args:
        model: the model, on the device of its inputs.
        inputs: a batch.
        name: the model's name in errors.

    Raises:
        MinifastError: torch.export cannot trace the model, or the model takes batches of one size only.
    """
    # torch.export takes a batch size of 1 for a constant.
    inputs = tuple(x if len(x) > 1 else torch.cat([x, x]) for x in inputs)
    shapes = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    batch = torch.export.Dim("batch", max=MOST_SAMPLES)
    for x in inputs:
        shapes[x] = {0: batch}
    try:
        with torch_is_quiet():
            program = torch.export.export(model, inputs, dynamic_shapes=shapes, strict=False)
            drop_misnamed_guards(program)
            return program
    except Exception as error:  # torch and the model can raise anything while they are traced
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        reason = reason.partition(" For more information")[0].strip().rstrip(".!")
        raise MinifastError(
            f"torch.export cannot trace {name or type(model).__name__}: {reason}. The model must take batches of any "
            f"size, and its control flow must not depend on the values of tensors."
        ) from error


MOST_SAMPLES = 2**31 - 1  # of a batch; without a limit, torch 2.6 cannot trace batches of two inputs


def trace(model: nn.Module, inputs: Sequence[Tensor], name: str = "") -> Program:
    """Record the steps of a model in evaluation mode from ``inputs``, a batch, to its output, one tensor.

    Trace on the CPU: on other devices torch.export uses operators that only those devices have.

    Raises:
        MinifastError: torch.export cannot trace the model, or a program cannot represent it.
    """
    name = name or type(model).__name__
    table = torch.export.default_decompositions()
    for operator_name in MORE_OPERATORS:
        table.pop(operator_named(operator_name), None)  # type: ignore[no-untyped-call]
    with torch_is_quiet():
        exported_program = exported(model, inputs, name).run_decompositions(table)
    signature = exported_program.graph_signature
    if any(spec.kind.name != "USER_OUTPUT" for spec in signature.output_specs):
        raise MinifastError(f"{name} changes its own state during inference, which a program cannot do.")
    if not exported_program.call_spec.out_spec.is_leaf():
        raise MinifastError(f"{name} returns a tuple, list or dict, but an exported model must return one tensor.")
    *nodes, end = exported_program.graph.nodes
    output = end.args[0][0]
    needed = {output}
    for node in reversed(nodes):  # without assertions, whose results no other node reads
        if node in needed:
            needed.update(node.all_input_nodes)
    specs = dict(zip(nodes, signature.input_specs, strict=False))
    input_nodes = [node for node, spec in specs.items() if spec.kind.name == "USER_INPUT"]
    tensor_nodes = [node for node in specs if node not in input_nodes and node in needed]
    numbers: dict[Any, int] = {node: i for i, node in enumerate([*input_nodes, *tensor_nodes])}
    tensors = []
    for node in tensor_nodes:
        target: Any = specs[node].target
        tensor = exported_program.state_dict.get(target, exported_program.constants.get(target))
        if not isinstance(tensor, Tensor):
            raise MinifastError(f"{name} uses {target}, which is not a tensor.")
        tensors.append(tensor.detach())
    steps = []
    for node in nodes:
        if node.op != "placeholder" and node in needed:
            called = str(node.target) if isinstance(node.target, torch._ops.OpOverload) else node.target.__name__
            if operator_named(called) is None:
                raise MinifastError(f"{name} uses {called}, which is not one of torch's core operators.")
            kwargs = {key: _plain(argument, numbers) for key, argument in node.kwargs.items()}
            steps.append((called, [_plain(argument, numbers) for argument in node.args], kwargs))
            numbers[node] = len(numbers)
    samples = [(list(x.shape[1:]), str(x.dtype).removeprefix("torch.")) for x in inputs]
    return Program({"inputs": samples, "tensors": tensors, "steps": steps, "output": numbers[output]})


def _plain(value: Any, numbers: dict[Any, int]) -> Any:
    """Convert a node's argument to plain values, which ``_read`` converts back."""
    if isinstance(value, torch.fx.Node):
        return ["value", numbers[value]]
    if isinstance(value, (list, tuple)):
        return ["list", *(_plain(element, numbers) for element in value)]
    if isinstance(value, torch.device):
        return ["device"]
    for name, kind in TYPES.items():
        if isinstance(value, kind):
            return [name, str(value).removeprefix("torch.")]
    if value is not None and type(value) not in (bool, int, float, str):
        raise MinifastError(f"The model uses {value!r}, which a file of plain values cannot hold.")
    return value
