"""The pickles in PyTorch's files, read without running them.

A pickle is a program: `pickle.load` imports and calls whatever it names. The reader here knows only the operations that
a state dict needs, and makes plain values of them. It imports nothing and calls nothing that a file names; the names
that PyTorch writes stand for what is done here. Tensors come out as descriptions, whose numbers are read later.
"""

import dataclasses
import io
import math
import pickletools
import warnings
from typing import Any

import ml_dtypes
import numpy as np

from ddjax.checks import printable

# A tensor needs about 200 bytes and 30 operations, each of which can take a hundred bytes of memory.
MOST_BYTES = 2**24
MOST_OPERATIONS = 2**18
# Numbers of 128 bits: the magic number of a file has 80.
_LARGEST = 2**127
_KEYS = 2**63

_DTYPES = {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
}
_STORAGES = {
    f"{module} {name}Storage": np.dtype(_DTYPES[name]) for module in ("torch", "torch.cuda") for name in _DTYPES
}
_ORDERED_DICT = "collections OrderedDict"
_TENSOR, _TENSOR_2, _PARAMETER = (f"torch._utils _rebuild_{kind}" for kind in ("tensor", "tensor_v2", "parameter"))
_NAMES = {_ORDERED_DICT, _TENSOR, _TENSOR_2, _PARAMETER, *_STORAGES}


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
    """Numbers of one dtype in a row.

    Attributes:
      key: names them in the file.
      dtype: of each.
      numel: how many the file has.
      start: the first that belongs to the storage.
      count: how many belong to it; fewer than `numel` for a view, which only old files have.
    """

    key: str
    dtype: np.dtype
    numel: int
    start: int
    count: int


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor, whose numbers are in a storage: `offset` and `strides` are in elements, and within it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Pickle:
    """What a pickle holds.

    Attributes:
      value: None, numbers, strings, lists, tuples and dictionaries of them, and `Tensor`.
      length: of the pickle in bytes.
      storages: all that it names, by their keys.
    """

    value: Any
    length: int
    storages: dict[str, Storage]


@dataclasses.dataclass(frozen=True, eq=False)
class _Name:
    """A name that a pickle would import."""

    name: str


def read(content: bytes) -> Pickle:
    """Reads the pickle at the start of some bytes.

    Raises:
      ValueError: for one that is damaged, or holds anything but a state dict's kinds of values.
    """
    stream, reader = io.BytesIO(content), _Reader()
    try:
        with warnings.catch_warnings():
            # Of strings that are no Python, in operations that are refused anyway.
            warnings.simplefilter("ignore", DeprecationWarning)
            for number, (operation, argument, _) in enumerate(pickletools.genops(stream)):
                if number >= MOST_OPERATIONS:
                    raise ValueError(f"its pickle has more than {MOST_OPERATIONS} operations")
                reader.step(operation.name, argument)
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        # Operations on values that are not there, or of another type.
        raise ValueError("its pickle is damaged") from error
    return Pickle(reader.stack[0], stream.tell(), reader.storages)


class _Reader:
    """The stack, the marks and the memory of a pickle, as Python's `pickle` module defines them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.storages: dict[str, Storage] = {}
        self._below: list[list[Any]] = []
        self._memory: dict[int, Any] = {}

    def _from_mark(self) -> list[Any]:
        items, self.stack = self.stack, self._below.pop()
        return items

    def step(self, operation: str, argument: Any) -> None:
        """Does one operation."""
        stack = self.stack
        match operation:
            case "BINPUT" | "LONG_BINPUT":
                self._memory[argument] = stack[-1]
            case "MEMOIZE":
                self._memory[len(self._memory)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memory[argument])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NEWTRUE": True, "NEWFALSE": False}.get(operation))
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4":
                if abs(argument) > _LARGEST:
                    raise ValueError("its pickle has an integer of more than 128 bits")
                stack.append(argument)
            case "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "BINSTRING" | "SHORT_BINSTRING":
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "MARK":
                self._below.append(stack)
                self.stack = []
            case "TUPLE":
                items = tuple(self._from_mark())
                self.stack.append(items)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(operation[-1]))]
                stack.append(tuple(reversed(items)))
            case "APPEND":
                item = stack.pop()
                _a(list, stack[-1]).append(item)
            case "APPENDS":
                items = self._from_mark()
                _a(list, self.stack[-1]).extend(items)
            case "SETITEM":
                item = stack.pop()
                _set(stack[-2], stack.pop(), item)
            case "SETITEMS":
                items = self._from_mark()
                for place in range(0, len(items), 2):
                    _set(self.stack[-1], items[place], items[place + 1])
            case "GLOBAL":
                stack.append(_known(argument))
            case "STACK_GLOBAL":
                name = _a(str, stack.pop())
                stack.append(_known(f"{_a(str, stack.pop())} {name}"))
            case "REDUCE":
                arguments = _a(tuple, stack.pop())
                stack.append(_made(_a(_Name, stack.pop()).name, arguments))
            case "BUILD":
                # The versions of the modules, which PyTorch adds to a state dict as an attribute.
                _a(dict, stack.pop())
                _a(dict, stack[-1])
            case "BINPERSID":
                kind, *rest = _a(tuple, stack.pop())
                if kind != "storage":
                    raise ValueError("it holds a whole module and not a state dict")
                stack.append(self._storage(*rest))
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                if len(stack) != 1 or self._below:
                    raise ValueError("its pickle is damaged")
            case _:
                raise ValueError(f"its pickle has the operation {operation}, which no state dict needs")

    def _storage(self, kind: Any, key: Any, place: Any, numel: Any, view: Any = None) -> Storage:
        """A storage by what stands for it in a pickle."""
        dtype = _STORAGES[_a(_Name, kind).name]
        _check_sizes(numel)
        whole = self.storages.setdefault(_a(str, key), Storage(key, dtype, numel, 0, numel))
        if (whole.dtype, whole.numel) != (dtype, numel):
            raise ValueError("its pickle names a storage with two sizes or dtypes")
        if view is None:
            return whole
        _, start, count = _a(tuple, view)
        _check_sizes(start, count)
        if start + count > numel:
            raise ValueError("it has a view that is not within its storage")
        return dataclasses.replace(whole, start=start, count=count)


def _a(wanted: type, value: Any) -> Any:
    """The value, which has a type."""
    if not isinstance(value, wanted):
        raise TypeError
    return value


def _set(target: Any, key: Any, value: Any) -> None:
    # Tuples as keys could take exponential time to hash, and integers of any size collide at will.
    if not (isinstance(key, str) or (isinstance(key, int) and abs(key) < _KEYS)):
        raise ValueError("a dictionary in its pickle has keys that are neither strings nor integers")
    _a(dict, target)[key] = value


def _known(name: str) -> _Name:
    if name not in _NAMES:
        shown = printable(name.replace(" ", "."))
        raise ValueError(f"it names {shown}, which is no part of a state dict; nothing of it was run")
    return _Name(name)


def _made(name: str, arguments: tuple[Any, ...]) -> Any:
    """What a call of a name makes."""
    if name == _ORDERED_DICT:
        made: dict[Any, Any] = {}
        # Python 2 wrote the items as an argument.
        for key, value in _a(list, arguments[0]) if arguments else ():
            _set(made, key, value)
        return made
    if name == _PARAMETER:
        return _a(Tensor, arguments[0])
    # Behind these four stand requires_grad and hooks; what comes then says that the numbers mean something else.
    if name in (_TENSOR, _TENSOR_2) and not any(arguments[6:]):
        return _tensor(*arguments[:4])
    raise ValueError("it has a tensor of a kind that is not read")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    _check_sizes(offset, *_a(tuple, shape), *_a(tuple, strides))
    if len(shape) != len(strides) or len(shape) > 64:
        raise ValueError("it has a tensor with more strides or dimensions than there can be")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= _a(Storage, storage).count:
        raise ValueError(f"it has a tensor of shape {shape} that is not within its storage")
    return Tensor(storage, offset, shape, strides)


def _check_sizes(*sizes: Any) -> None:
    if not all(type(size) is int and 0 <= size < 2**62 for size in sizes):
        raise ValueError("it has a tensor whose sizes or strides are no natural numbers")
