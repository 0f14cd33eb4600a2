"""Weight files made by hand, valid and not: pickles by their operations, and the formats around them."""

import json
import struct
import zipfile
from typing import Any, NamedTuple


class Name(NamedTuple):
    """What a pickle would import: "module name"."""

    name: str


class Call(NamedTuple):
    """What a pickle would call; `build` is a state that it would set then."""

    name: str
    arguments: tuple = ()
    build: Any = None


class Persistent(NamedTuple):
    """What a pickle only refers to."""

    value: tuple


class Raw(NamedTuple):
    """Operations as they are."""

    operations: bytes


def operations(value):
    """The operations of protocol 2 that make a value."""
    match value:
        case Raw():
            return value.operations
        case Name():
            return b"c" + value.name.replace(" ", "\n").encode() + b"\n"
        case Call():
            made = operations(Name(value.name)) + operations(tuple(value.arguments)) + b"R"
            return made if value.build is None else made + operations(value.build) + b"b"
        case Persistent():
            return operations(value.value) + b"Q"
        case None | True | False:
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            digits = value.to_bytes(16, "little", signed=True)
            return b"\x8a\x10" + digits
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(operations, value)) + b"t"
        case list():
            return b"](" + b"".join(map(operations, value)) + b"e"
        case dict():
            items = [each for item in value.items() for each in item]
            return b"}(" + b"".join(map(operations, items)) + b"u"
    raise TypeError(value)


def pickled(value):
    return b"\x80\x02" + operations(value) + b"."


def storage(key="0", kind="torch FloatStorage", numel=6, view=()):
    return Persistent(("storage", Name(kind), key, "cpu", numel, *view))


def tensor(of, shape=(2, 3), strides=(3, 1), offset=0, *, version="_v2"):
    """A tensor as PyTorch writes it, of a storage."""
    more = (False, Call("collections OrderedDict")) if version else ()
    return Call(f"torch._utils _rebuild_tensor{version}", (of, offset, shape, strides, *more))


def ordered(items):
    """A state dict as PyTorch writes it, with the versions of its modules."""
    empty = operations(Call("collections OrderedDict"))
    flat = b"".join(operations(each) for item in items.items() for each in item)
    return Raw(empty + b"(" + flat + b"u" + operations({"_metadata": {"": {"version": 1}}}) + b"b")


def write_zip(path, content, storages, *, root="archive", byteorder=None, more=()):
    """An archive of torch.save with a pickle, and the bytes of its storages by their keys."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{root}/data.pkl", content)
        if byteorder is not None:
            archive.writestr(f"{root}/byteorder", byteorder)
        for key, numbers in storages.items():
            archive.writestr(f"{root}/data/{key}", numbers)
        archive.writestr(f"{root}/version", "3\n")
        for name in more:
            archive.writestr(f"{root}/{name}", b"")
    return path


def write_legacy(path, content, storages, *, keys=None):
    """A file of torch.save before PyTorch 1.6, with a pickle, and numel and bytes of its storages by their keys."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]
    parts = [*map(pickled, head), content, pickled(list(storages) if keys is None else keys)]
    parts += [struct.pack("<q", numel) + numbers for numel, numbers in storages.values()]
    path.write_bytes(b"".join(parts))
    return path


def write_safetensors(path, header, numbers, *, length=None):
    """A file of safetensors with a header, a value of JSON or bytes, and the bytes of all arrays."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + numbers)
    return path
