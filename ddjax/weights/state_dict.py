"""State dicts of PyTorch, and whether weights fit a network."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from ddjax.checks import first_line, listed, printable
from ddjax.files import PathLike, local_path
from ddjax.weights import arrays, pickles, safetensors, torch_files

# Entries of a checkpoint that hold the network's weights.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
# Counters of batch normalization and of averaged models: no weights.
_COUNTERS = ("num_batches_tracked", "n_averaged")
_MOST_NAMED = 4
# Wrappers around one another, and tensors in a list of state dicts, which may have one of them any number of times.
_DEEPEST, MOST_TENSORS = 8, 2**17
_MEND = "save the weights alone, in PyTorch with torch.save(model.state_dict(), PATH)"


def load_state_dict(path: PathLike, *, entry: str | None = None) -> dict[str, np.ndarray]:
    """Reads a state dict of PyTorch, without PyTorch and without running what the file holds.

    It takes what `torch.save(model.state_dict(), path)` wrote, in the zip format of PyTorch 1.6 and later or in the
    one before, and safetensors. A file may hold more than the weights, such as the state of an optimizer: then they are
    the entry "state_dict", "model_state_dict", "model" or "net". Names lose the prefix "module." of `DataParallel` when
    all have it, and the part "_orig_mod" of `torch.compile`. Of a list of state dicts, such as a cascade of networks,
    each name gets its position in the list as the first part, if there are two or more. The counters
    `num_batches_tracked` and `n_averaged`, and all that is no tensor, are left out.

    Args:
      path: of the file, whatever its suffix.
      entry: of the file, that holds the weights; default: the only one that can.

    Returns:
      The arrays by their names, in the file's order and dtypes (bfloat16 as `ml_dtypes` has it). Tensors that share
      memory in the file may share it here.

    Raises:
      OSError: when the file cannot be read.
      ValueError: for a file that is damaged, of another format, or holds anything else than tensors, numbers, strings
        and containers of them, such as a whole pickled module. None of it is run, and no more memory is taken than in
        proportion to the file's size.
    """
    path = local_path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a directory; ddjax.load_weights reads directories of weights")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file")
    with arrays.File(path) as file:
        mend = _MEND
        try:
            head = file.read(9)
            file.seek(0)
            # A length of 8 bytes and the start of a JSON object.
            if path.suffix == ".safetensors" or head[8:] == b"{":
                mend = "get or save it again"
                return _tidy(safetensors.read(file))
            value, array = torch_files.read(file)
            found = _find(value, entry)
            return _tidy({name: array(tensor) for name, tensor in found.items() if not _is_counter(name)})
        except ValueError as error:
            raise ValueError(f"{path} cannot be read: {printable(first_line(error), most=400)}; {mend}") from error


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in _COUNTERS


def _tensors(value: Any) -> dict[str, pickles.Tensor]:
    """The tensors of a state dict; none where the value is no state dict."""
    if not isinstance(value, dict):
        return {}
    return {name: each for name, each in value.items() if isinstance(name, str) and isinstance(each, pickles.Tensor)}


def _find(value: Any, entry: str | None) -> dict[str, pickles.Tensor]:
    """The tensors of the state dict in what a file holds."""
    if entry is not None:
        if not isinstance(value, dict) or entry not in value:
            known = _listed(value) if isinstance(value, dict) else "none"
            raise ValueError(f"it has no entry {entry!r}; its entries: {known}")
        value = value[entry]
    # A container may hold itself.
    for _ in range(_DEEPEST):
        inside = value[:1] if isinstance(value, list) and len(value) == 1 else []
        if isinstance(value, dict):
            inside = [value[name] for name in WRAPPERS if isinstance(value.get(name), dict | list)]
        if len(inside) > 1:
            raise ValueError(
                f"more than one of its entries can be the weights; give one as entry=...: {_listed(value)}"
            )
        if not inside:
            break
        (value,) = inside
    found = {}
    for place, member in enumerate(value) if isinstance(value, list) else ():
        found |= {f"{place}.{name}": tensor for name, tensor in _tensors(member).items()}
        if len(found) > MOST_TENSORS:
            raise ValueError(f"it holds more than {MOST_TENSORS} tensors")
    if not (found := found or _tensors(value)):
        entries = itertools.islice(value.items(), 100) if isinstance(value, dict) else ()
        known = [name for name, each in entries if _tensors(each)]
        hint = f"; give one of its entries as entry=...: {_listed(known)}" if known else ""
        raise ValueError(f"it holds no state dict{hint}")
    return found


def _listed(names: Iterable[Any]) -> str:
    return listed([printable(str(name)) for name in names], most=_MOST_NAMED)


def _tidy(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays without counters, and with the names that the network has without wrappers."""
    names = {name: name for name in found if not _is_counter(name)}
    for name in names:
        names[name] = ".".join(part for part in name.split(".") if part != "_orig_mod")
    while names and all(name.startswith("module.") for name in names.values()):
        names = {old: name.removeprefix("module.") for old, name in names.items()}
    if len(set(names.values())) < len(names):
        raise ValueError("it has two tensors of one name, once with and once without the prefix of a wrapper")
    return {name: found[old] for old, name in names.items()}


def check_match(weights: Mapping[str, Any], expected: Mapping[str, Any], *, what: str = "the network") -> None:
    """Refuses weights that do not fit a network.

    Args:
      weights: arrays by names, or nested dictionaries of them, whose names are then joined by "/".
      expected: the same with arrays, or whatever has a shape, or with shapes.
      what: the network in the message.

    Raises:
      ValueError: with a few of the names that are missing, that the network does not have, and that have other shapes.
    """
    have, want = _shapes(weights), _shapes(expected)
    other = [
        f"{name} {have[name]} instead of {want[name]}" for name in want if name in have and have[name] != want[name]
    ]
    problems = {
        "missing": [name for name in want if name not in have],
        "unexpected": [name for name in have if name not in want],
        "of another shape": other,
    }
    told = [f"{problem}: {_listed(names)}" for problem, names in problems.items() if names]
    if told:
        raise ValueError(f"the weights do not fit {what}; {'; '.join(told)}")


def _shapes(tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    leaves: dict[str, Any] = traverse_util.flatten_dict(dict(tree), sep="/")
    return {name: tuple(leaf if isinstance(leaf, tuple | list) else np.shape(leaf)) for name, leaf in leaves.items()}
