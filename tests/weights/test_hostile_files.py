"""Files that attack their reader: each ends in one sentence, runs nothing, and takes no memory that it only claims."""

import io
import os
import pickle
import random
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from flax import serialization

import ddjax
from ddjax.weights import pickles, state_dict
from tests.weights.making import (
    Call,
    Name,
    Persistent,
    Raw,
    operations,
    ordered,
    pickled,
    storage,
    tensor,
    write_legacy,
    write_safetensors,
    write_zip,
)

BYTES = np.arange(6, dtype=np.float32).tobytes()
# What reading may take beyond the file's size; forged sizes are much larger.
MEMORY = 2**25
SECONDS = 5


def check_refused(path, sentence):
    """Checks that a file is refused in one sentence, and what that takes."""
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises(ValueError) as refused:
            ddjax.load_weights(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    told = str(refused.value)
    assert sentence in told
    assert str(path) in told
    assert len(told) < 700
    assert told.isprintable()
    assert peak < 3 * path.stat().st_size + MEMORY
    assert time.process_time() - started < SECONDS


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


RUN = "open('ran', 'w')"
PROGRAMS = {
    "system": Runs(os.system, "touch ran"),
    "eval": Runs(eval, RUN),
    "exec": Runs(exec, RUN),
    "getattr": Runs(getattr, "text", "join"),
    "import": Runs(__import__, "os"),
    "open": Runs(open, "ran", "w"),
    "nested": {"weight": {"more": [Runs(os.system, "touch ran")]}},
    "partial": Runs(__import__("functools").partial, os.system, "touch ran"),
    "class": Runs(type, "Net", (), {}),
}


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("program", PROGRAMS)
def test_runs_no_program(program, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps(PROGRAMS[program], protocol=protocol)
    (tmp_path / "plain.pth").write_bytes(content)
    paths = [tmp_path / "plain.pth", write_zip(tmp_path / "zip.pth", content, {})]
    for path in [*paths, write_legacy(tmp_path / "legacy.pth", content, {})]:
        check_refused(path, "torch.save(model.state_dict(), PATH)")
    assert not (tmp_path / "ran").exists()


OF = storage()
GOOD = tensor(OF)
NESTED = b"]" * 3000 + b"a" * 2999
PICKLES = {
    "system beside weights": ({"weight": GOOD, "x": Call("posix system", ("touch ran",))}, "it names posix.system"),
    "system in an optimizer": ({"model": {"w": GOOD}, "opt": [Call("nt system", ("x",))]}, "it names nt.system"),
    "escapes of a terminal": (Call("os\x1b[31m sys\x07tem", ()), "it names os?[31m.sys?tem"),
    "copyreg": (Call("copyreg _reconstructor", ()), "it names copyreg._reconstructor"),
    "module": (Call("torch.nn.modules.linear Linear", ()), "it names torch.nn.modules.linear.Linear"),
    "legacy module": (Persistent(("module", Name("torch FloatStorage"), "file", "source")), "a whole module"),
    "name of a long name": (Call(f"a {'b' * 10**6}", ()), "it names a.bbb"),
    "state of a tensor": (Call(GOOD.name, GOOD.arguments, {"__class__": 1}), "damaged"),
    "state of a name": (Raw(operations(Name("torch FloatStorage")) + operations({"x": 1}) + b"b"), "damaged"),
    "call of a storage's type": (Call("torch FloatStorage", (6,)), "tensor of a kind that is not read"),
    "call of a tensor": (Raw(operations(GOOD) + b")R"), "damaged"),
    "extension": (Raw(b"\x82\x01"), "operation EXT1"),
    "instance": (Raw(b"(S'x'\nios\nsystem\n"), "operation STRING"),
    "object": (Raw(b"(" + operations(Name("torch FloatStorage")) + b"o"), "operation OBJ"),
    "new object": (Raw(operations(Name("collections OrderedDict")) + b")\x81"), "operation NEWOBJ"),
    "persistent id of text": (Raw(b"P0\n"), "operation PERSID"),
    "buffer of its own": (Raw(b"\x97"), "operation NEXT_BUFFER"),
    "no state dict": ([1, 2.0, None, True], "it holds no state dict"),
    "tensor alone": (GOOD, "it holds no state dict"),
    "empty": ({}, "it holds no state dict"),
    "offset outside": ({"w": tensor(OF, offset=1)}, "not within its storage"),
    "shape outside": ({"w": tensor(OF, (2**40, 3), (3, 1))}, "not within its storage"),
    "stride outside": ({"w": tensor(OF, (2, 3), (2**60, 1))}, "not within its storage"),
    "negative stride": ({"w": tensor(OF, (6,), (-1,), 5)}, "natural numbers"),
    "negative shape": ({"w": tensor(OF, (-2, 3))}, "natural numbers"),
    "negative offset": ({"w": tensor(OF, (2,), (1,), -4)}, "natural numbers"),
    "shape of floats": ({"w": tensor(OF, (2.0, 3))}, "natural numbers"),
    "huge integers": ({"w": tensor(OF, (2**100, 3))}, "natural numbers"),
    "more strides than sizes": ({"w": tensor(OF, (6,), (1, 1))}, "more strides or dimensions"),
    "many dimensions": ({"w": tensor(OF, (1,) * 65, (1,) * 65)}, "more strides or dimensions"),
    "empty and huge": ({"w": tensor(OF, (0, 2**61), (1, 1))}, ""),
    "expanded without end": ({"w": tensor(OF, (2**40,), (0,))}, "bytes of arrays"),
    "expanded many times": ({str(i): tensor(OF, (2**20, 2), (0, 1)) for i in range(64)}, "bytes of arrays"),
    "numel too large": ({"w": tensor(storage(numel=2**40))}, "4398046511104 bytes"),
    "numel overflows": ({"w": tensor(storage(numel=2**63 // 4))}, ""),
    "negative numel": ({"w": tensor(storage(numel=-6))}, ""),
    "two sizes": ({"v": GOOD, "w": tensor(storage(numel=7))}, "a storage with two sizes"),
    "two dtypes": ({"v": GOOD, "w": tensor(storage(kind="torch IntStorage"))}, "a storage with two sizes or dtypes"),
    "view outside": ({"w": tensor(storage(view=(("1", 4, 4),)))}, "view that is not within"),
    "missing storage": ({"w": tensor(storage("7"))}, ""),
    "path as key": ({"w": tensor(storage("../data.pkl"))}, ""),
    "conjugate": ({"w": Call(GOOD.name, (*GOOD.arguments, {"conj": True}))}, "a kind that is not read"),
    "deep nesting": (Raw(NESTED), "it holds no state dict"),
    "itself": (Raw(b"}q\x00(X\x05\x00\x00\x00modelh\x00u"), "it holds no state dict"),
    "list of itself": (Raw(b"]q\x00h\x00a"), "it holds no state dict"),
    "key of exponential hash": (Raw(b"}" + b")" + b"q\x00h\x00\x86" * 60 + b"Ns"), "neither strings nor integers"),
    "keys that collide": (Raw(b"}" + operations(2**100) + b"Ns"), "neither strings nor integers"),
    "long integer": (Raw(b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6), "more than 128 bits"),
    "negative length": (Raw(b"\x8b" + struct.pack("<i", -5)), ""),
    "forged length": (Raw(b"\x8d" + struct.pack("<Q", 2**60) + b"x"), ""),
    "forged byte array": (Raw(b"\x96" + struct.pack("<Q", 2**40) + b"x"), ""),
    "forged frame": (Raw(b"\x95" + struct.pack("<Q", 2**63 - 1)), ""),
    "memory of a large index": (Raw(b"Nr\xff\xff\xff\xff0"), "operation POP"),
    "forgotten memory": (Raw(b"h\x07"), "damaged"),
    "mark without end": (Raw(b"(("), "damaged"),
    "empty stack": (Raw(b""), "damaged"),
    "odd items": (Raw(b"}(X\x01\x00\x00\x00au"), "damaged"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_refuses_hostile_pickles(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value, sentence = PICKLES[name]
    content = pickled(value)
    check_refused(write_zip(tmp_path / "zip.pt", content, {"0": BYTES}), sentence)
    # The older format finds a false numel otherwise, and has no storages that are not named.
    sentence = "" if name == "numel too large" else sentence
    storages = {"0": (6, BYTES)} if b"storage" in content else {}
    check_refused(write_legacy(tmp_path / "legacy.pt", content, storages), sentence)
    assert not (tmp_path / "ran").exists()


def test_refuses_pickles_of_many_operations(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MOST_OPERATIONS", 1000)
    path = write_zip(tmp_path / "net.pt", pickled(Raw(b"(" + b"}" * 2000 + b"l")), {})
    check_refused(path, "more than 1000 operations")


def test_refuses_a_dictionary_of_too_many_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr(state_dict, "MOST_TENSORS", 1000)
    repeated = Raw(b"](" + operations(ordered({"v": GOOD, "w": GOOD})) + b"q\x00" + b"h\x00" * 600 + b"e")
    check_refused(write_zip(tmp_path / "net.pt", pickled(repeated), {"0": BYTES}), "more than 1000 tensors")


def test_refuses_legacy_files_with_forged_storages(tmp_path):
    content, path = pickled({"w": GOOD}), tmp_path / "net.pth"
    for numel in (2**40, -1, 7, 5):
        check_refused(write_legacy(path, content, {"0": (numel, BYTES)}), "its storages are others")
    huge = pickled({"w": tensor(storage(numel=2**40))})
    check_refused(write_legacy(path, huge, {"0": (2**40, BYTES)}), "it should have 4398046511")
    check_refused(write_legacy(path, content, {"0": (6, BYTES)}, keys=[]), "does not hold")
    check_refused(write_legacy(path, content, {"0": (6, BYTES)}, keys=["1"]), "its storages are others")
    check_refused(write_legacy(path, content, {"0": (6, BYTES)}, keys=[["0"]]), "its storages are others")
    whole = write_legacy(path, content, {"0": (6, BYTES)}).read_bytes()
    path.write_bytes(whole[:-3])
    check_refused(path, "it should have")


def test_refuses_archives_that_are_no_state_dicts(tmp_path):
    content, path = pickled({"w": GOOD}), tmp_path / "net.pt"
    check_refused(write_zip(path, content, {"0": BYTES}, more=["constants.pkl", "code/x.py"]), "TorchScript")
    check_refused(write_zip(path, content, {"0": BYTES}, more=["more/data.pkl"]), "not a file of torch.save")
    check_refused(write_zip(path, content, {"0": BYTES[:-4]}), "24 bytes by its pickle, and 20 are there")
    check_refused(write_zip(path, pickled({"x" * 2**24: 1}), {}), "its data.pkl has more than")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "")
    check_refused(path, "not a file of torch.save")
    whole = write_zip(path, content, {"0": BYTES}).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    check_refused(path, "zip archive is damaged")
    # The size of the central directory, 12 bytes into its end.
    forged = bytearray(whole)
    forged[-10:-6] = struct.pack("<I", 2**30)
    path.write_bytes(forged)
    check_refused(path, "zip archive is damaged")
    path.write_bytes(whole.replace(BYTES, BYTES[::-1]))
    check_refused(path, "Bad CRC-32")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_refuses_archives_that_expand(tmp_path, method):
    for name, member in (("net.pt", "archive/data/0"), ("net.npz", "weight.npy")):
        path = tmp_path / name
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("archive/data.pkl", pickled({"w": tensor(storage(numel=2**23))}))
            archive.writestr(member, bytes(2**25))
        check_refused(path, "bytes of arrays" if method == zipfile.ZIP_DEFLATED else "another method than deflate")


def entry(shape=(6,), offsets=(0, 24), dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS = {
    "length of the header": (b"{}", "header has", 2**31),
    "largest length": (b"{}", "header has", 2**64 - 1),
    "no JSON": (b"{nothing}", "", None),
    "no text": (b"{\xff}", "", None),
    "no table": (b"[]", "", None),
    "deep nesting": (b'{"w": ' + b"[" * 10**6, "nested too deeply", None),
    "a name twice": (b'{"w": 1, "w": 2}', "a name twice", None),
    "overlapping": ({"v": entry(), "w": entry()}, "overlap", None),
    "hole": ({"v": entry((5,), (4, 24))}, "leave bytes", None),
    "outside": ({"w": entry((2**40,), (0, 2**42))}, "bytes by its header", None),
    "too few": ({"w": entry((5,), (0, 20))}, "20 bytes by its header", None),
    "negative size": ({"w": entry((-6,), (0, 24))}, "natural numbers", None),
    "negative offset": ({"w": entry((6,), (-24, 0))}, "natural numbers", None),
    "backward offsets": ({"w": entry((6,), (24, 0))}, "too many or too few", None),
    "offsets of floats": ({"w": entry((6,), (0, 24.0))}, "natural numbers", None),
    "shape and offsets differ": ({"w": entry((7,))}, "too many or too few", None),
    "empty and huge": ({"w": entry((0, 2**61), (0, 0)), "v": entry()}, "", None),
    "overflow": ({"w": entry((2**61, 8, 2), (0, 0)), "v": entry()}, "too many or too few", None),
    "many dimensions": ({"w": entry((1,) * 100, (0, 4))}, "natural numbers", None),
    "three offsets": ({"w": entry((6,), (0, 24, 24))}, "too many or too few", None),
    "unknown dtype": ({"w": entry(dtype="F4")}, "known: F64", None),
    "dtype of another type": ({"w": entry(dtype=["F32"])}, "known: F64", None),
    "no entry": ({"w": [1]}, "other words", None),
}


@pytest.mark.parametrize("name", HEADERS)
def test_refuses_hostile_safetensors(name, tmp_path):
    header, sentence, length = HEADERS[name]
    check_refused(write_safetensors(tmp_path / "net.safetensors", header, BYTES, length=length), sentence)


def test_refuses_hostile_arrays_of_numpy(tmp_path):
    def npy(header, numbers=BYTES):
        text = header.encode().ljust(117) + b"\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + numbers

    header = "{'descr': '%s', 'fortran_order': False, 'shape': %s}"
    contents = {
        npy(header % ("<f4", (2**40,))): "by its header",
        npy(header % ("<f4", (-1,))): "natural numbers",
        npy(header % ("<f4", (0, 2**61)), b""): "",
        npy(header % ("<f4", (7,))): "24 bytes for it",
        npy(header % ("|O", (3,))): "no numbers",
        npy(header % ("|V2", (12,))): "save bfloat16 as float32",
        b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**30) + BYTES: "",
        npy("__import__('os').system('touch ran')"): "",
        pickle.dumps(Runs(os.system, "touch ran")): "",
    }
    objects = io.BytesIO()
    np.save(objects, np.asarray([Runs(os.system, "touch ran")]), allow_pickle=True)
    contents[objects.getvalue()] = "no numbers"
    for number, (content, sentence) in enumerate(contents.items()):
        path = tmp_path / f"{number}.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("weight.npy", content)
        check_refused(path, sentence)
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "weight.npy").write_bytes(content)
        check_refused(directory, sentence)


def valid(kind, path):
    """A small valid file of a kind."""
    state = ordered({"module.weight": GOOD, "module.bias": tensor(OF, (3, 2), (1, 3))})
    arrays = {"weight": np.arange(6.0), "bias": np.arange(4, dtype=np.int8)}
    if kind == "zip.pt":
        write_zip(path, pickled({"model": state, "epoch": 3}), {"0": BYTES}, byteorder="little")
    elif kind == "legacy.pt":
        write_legacy(path, pickled({"model": state, "epoch": 3}), {"0": (6, BYTES)})
    elif kind == "net.safetensors":
        write_safetensors(path, {"v": entry((2, 2), (24, 32), "BF16"), "w": entry()}, BYTES + bytes(8))
    elif kind == "net.npz":
        np.savez_compressed(path, **arrays)
    else:
        path.write_bytes(serialization.msgpack_serialize({"params": arrays}))
    return path


@pytest.mark.parametrize("kind", ["zip.pt", "legacy.pt", "net.safetensors", "net.npz", "net.msgpack"])
def test_damaged_files_are_read_or_refused(kind, tmp_path):
    path = valid(kind, tmp_path / kind)
    whole, draw, refused = path.read_bytes(), random.Random(0), 0
    assert ddjax.load_weights(path)
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(draw.choice((1, 1, 2, 5))):
            place, length = draw.randrange(len(content)), draw.randrange(1, 9)
            change = draw.choice(("flip", "random", "extreme", "cut", "copy", "drop"))
            if change == "flip":
                content[place] ^= 1 << draw.randrange(8)
            elif change == "random":
                content[place : place + length] = draw.randbytes(length)
            elif change == "extreme":
                content[place : place + length] = draw.choice((b"\x00", b"\xff", b"\x7f")) * length
            elif change == "cut" and place:
                del content[place:]
            elif change == "copy":
                content[place:place] = content[place : place + 4 * length]
            elif len(content) > length:
                del content[place : place + length]
        path.write_bytes(content)
        try:
            ddjax.load_weights(path)
        except ValueError:
            refused += 1
    assert 25 < refused < 150
