"""A PyTorch module as a classifier: exported by PyTorch, translated to a graph, and checked against the module.

Exporting makes all in-place operations functional, which a translation module by module would get wrong: a rectifier
that works in place also changes what a shortcut reads.
"""

import copy
import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ddjax.checks import first_line
from ddjax.torch_import.aten import OPERATIONS
from ddjax.torch_import.graph import Graph, Node, Ref

# Of logits, relative to the largest one or to 1: the largest difference that is rounding.
_TOLERANCE = 1e-5
_BATCH = 8
# What PyTorch would take apart, although here it has a name: its parts have other gradients, or are slower.
_WHOLE = (
    "celu", "hardsigmoid", "hardswish", "instance_norm", "linear", "log_sigmoid", "matmul", "mish", "pad",
    "scaled_dot_product_attention", "selu", "silu", "softplus",
)  # fmt: skip
# Arguments that say where and how a tensor lies in memory.
_PLACEMENT = ("device", "layout", "memory_format", "non_blocking", "pin_memory")
# What only raises errors, or guards shapes.
_ASSERTIONS = ("_assert_async", "_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range_for_size")


def from_torch(module: Any, example: Any) -> Partial:
    """Makes a classifier of a PyTorch network.

    The network is copied to the CPU and put in evaluation mode, exported by `torch.export`, and translated to JAX. It
    is left as it was, and PyTorch is not needed any more to run, differentiate or attack the classifier. Parameters and
    buffers are the classifier's arrays, floating ones in float32, by their names in `state_dict`; two networks of one
    architecture share one compiled program. Logits of random inputs, and of the example, are compared with PyTorch's.

    Args:
      module: a `torch.nn.Module` from one tensor, `[B, C, H, W]` for images, to logits `[B, K]`. An example of a batch
        must not influence another.
      example: inputs as ddjax has them, `[B, H, W, C]` for images, else as the module takes them, `[B, D]`; or the
        shape of a single input, `(H, W, C)` or `(D,)`.

    Returns:
      A classifier of inputs in ddjax's form.

    Raises:
      ImportError: without PyTorch.
      ValueError: for what is no module; one that cannot be exported; one with an operation that is not supported; one
        that fixes the size of its batch, or mixes its examples; or when logits differ by more than 1e-5, relative to
        the largest one where that is above 1.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise ImportError(f"from_torch needs PyTorch: pip install 'ddjax[torch]' ({first_line(error)})") from error
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"from_torch needs a torch.nn.Module, got {type(module).__name__}")
    batches = _batches(example)
    with warnings.catch_warnings(), torch.no_grad():
        # PyTorch warns of its own deprecations.
        warnings.simplefilter("ignore")
        expected = []
        try:
            module = copy.deepcopy(module).cpu().float().eval()
            program = _export(torch, module, _to_tensor(torch, batches[0]))
        except Exception as error:  # whatever the user's module and the exporter raise
            raise ValueError(f"PyTorch cannot export the module: {first_line(error)}") from error
        try:
            for batch in batches:
                expected.append(module(_to_tensor(torch, batch)))
        except Exception as error:
            raise ValueError(f"the module fails for a batch of {len(batch)}: {first_line(error)}") from error
        classifier = _translate(torch, program)
    _check(classifier, batches, expected)
    return classifier


def _batches(example: Any) -> list[np.ndarray]:
    """Random inputs, a batch of eight and the first of it, and the example's inputs."""
    is_shape = isinstance(example, Sequence) and all(isinstance(size, int) for size in example)
    given = None if is_shape else np.asarray(example, np.float32)
    shape = tuple(example) if given is None else given.shape[1:]
    if not shape or min(shape) < 1:
        raise ValueError("the example must be inputs [B, ...], or the shape of a single input such as (28, 28, 1)")
    random = np.random.default_rng(0).random((_BATCH, *shape), np.float32)
    return [random, random[:1], *([] if given is None else [given])]


def _to_tensor(torch: Any, inputs: np.ndarray) -> Any:
    moved = inputs.transpose(0, 3, 1, 2) if inputs.ndim == 4 else inputs
    return torch.from_numpy(np.array(moved, order="C"))


def _export(torch: Any, module: Any, inputs: Any) -> Any:
    """The exported program, whose batch may have any size."""
    table = torch.export.default_decompositions()
    for packet in (getattr(torch.ops.aten, name) for name in _WHOLE):
        for overload in packet.overloads():
            table.pop(getattr(packet, overload), None)
    program = torch.export.export(module, (inputs,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    return program.run_decompositions(table)


def _translate(torch: Any, program: Any) -> Partial:
    """The classifier of an exported program."""
    signature = program.graph_signature
    if signature.buffers_to_mutate:
        names = ", ".join(signature.buffers_to_mutate.values())
        raise ValueError(f"the module changes its buffers in evaluation mode: {names}")
    if len(signature.user_inputs) != 1 or len(signature.user_outputs) != 1:
        raise ValueError(
            "the module must take one tensor and return the logits alone, but it has "
            f"{len(signature.user_inputs)} inputs and {len(signature.user_outputs)} outputs"
        )
    names = signature.inputs_to_parameters | signature.inputs_to_buffers | signature.inputs_to_lifted_tensor_constants
    stored = {**program.constants, **program.state_dict}
    nodes, unknown, used = [], set(), set()
    (input_name,) = signature.user_inputs

    def translated(argument: Any) -> Any:
        if isinstance(argument, torch.fx.Node):
            if argument.name not in names:
                return Ref(argument.name)
            used.add(names[argument.name])
            return Ref(names[argument.name], is_parameter=True)
        if isinstance(argument, list | tuple):
            return tuple(translated(each) for each in argument)
        if isinstance(argument, torch.dtype):
            return _dtype(str(argument).removeprefix("torch."))
        return argument

    for node in program.graph.nodes:
        if node.name == input_name and not isinstance(node.meta["val"].shape[0], torch.SymInt):
            raise ValueError("the module fixes the size of its batch; take it from the input, as x.shape[0]")
        if node.op != "call_function":
            continue
        is_aten = isinstance(node.target, torch._ops.OpOverload)
        name = node.target._schema.name.removeprefix("aten::") if is_aten else f"operator.{node.target.__name__}"
        if name in _ASSERTIONS:
            continue
        if name not in OPERATIONS:
            unknown.add(name)
        keywords = {key: value for key, value in node.kwargs.items() if key not in _PLACEMENT}
        nodes.append(Node(node.name, name, translated(node.args), tuple(sorted(translated(list(keywords.items()))))))
    if unknown:
        raise ValueError(
            f"the module needs {', '.join(sorted(unknown))}, which ddjax does not support; it supports "
            f"{', '.join(sorted(OPERATIONS))}"
        )
    (output_name,) = signature.user_outputs
    parameters = {name: _to_array(stored[name]) for name in sorted(used)}
    return Partial(Graph(tuple(nodes), input_name, output_name), parameters)


def _to_array(tensor: Any) -> jax.Array:
    return jnp.asarray(tensor.detach().numpy(), _dtype(str(tensor.dtype).removeprefix("torch.")))


def _dtype(name: str) -> str:
    """Floats have 32 bits, and integers where JAX is not told to have 64."""
    dtype = jnp.dtype(name)
    return "float32" if jnp.issubdtype(dtype, jnp.floating) else str(jax.dtypes.canonicalize_dtype(dtype))


def _check(classifier: Partial, batches: Sequence[np.ndarray], expected: Sequence[Any]) -> None:
    """Compares logits."""
    apply = jax.jit(lambda classifier, inputs: classifier(inputs))
    found = []
    for inputs, logits in zip(batches, expected, strict=True):
        if getattr(logits, "ndim", None) != 2:
            raise ValueError(f"the module must return logits [B, K], got {getattr(logits, 'shape', type(logits))}")
        with jax.default_matmul_precision("highest"):
            found.append(np.asarray(apply(classifier, jnp.asarray(inputs))))
        _compare("of the imported network and of PyTorch", found[-1], logits.numpy())
    _compare("of an example alone and in a batch", found[1], found[0][:1])


def _compare(what: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    difference, allowed = np.abs(ours - theirs).max(), _TOLERANCE * max(1.0, np.abs(theirs).max())
    # Not `>`: a NaN must not pass.
    if not difference <= allowed:
        raise ValueError(f"the logits {what} differ by {difference:.3g}, and {allowed:.3g} is allowed")
