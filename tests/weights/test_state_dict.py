"""State dicts of PyTorch: both formats of torch.save, and safetensors."""

import hashlib
import os
import pathlib
import re

import ml_dtypes
import numpy as np
import pytest

import ddjax
from tests.weights.making import Call, ordered, pickled, storage, tensor, write_legacy, write_safetensors, write_zip

NUMBERS = np.arange(6, dtype=np.float32)
BYTES = NUMBERS.tobytes()


@pytest.fixture(params=["zip", "legacy"])
def load(request, tmp_path):
    """Reads what is saved in a format, with storages of six float32 numbers unless others are given."""

    def write_and_load(value, storages=None, **settings):
        storages = {"0": NUMBERS} if storages is None else storages
        path = tmp_path / "net.pth"
        if request.param == "zip":
            write_zip(path, pickled(value), {key: each.tobytes() for key, each in storages.items()})
        else:
            write_legacy(path, pickled(value), {key: (each.size, each.tobytes()) for key, each in storages.items()})
        return ddjax.load_state_dict(path, **settings)

    return write_and_load


def test_reads_views_and_permuted_tensors(load):
    of = storage()
    found = load(
        ordered(
            {
                "whole": tensor(of),
                "transposed": tensor(of, (3, 2), (1, 3)),
                "view": tensor(of, (2,), (2,), 1),
                "scalar": tensor(of, (), (), 5),
                "expanded": tensor(of, (4, 2), (0, 1)),
                "empty": tensor(of, (0, 3), (3, 1), 6),
                "old": tensor(of, version=""),
                "parameter": Call(
                    "torch._utils _rebuild_parameter", (tensor(of), True, Call("collections OrderedDict"))
                ),
            }
        )
    )
    whole = NUMBERS.reshape(2, 3)
    expected = {"whole": whole, "transposed": whole.T, "view": NUMBERS[1:4:2], "scalar": NUMBERS[5]}
    expected |= {"expanded": np.tile(NUMBERS[:2], (4, 1)), "empty": np.zeros((0, 3)), "old": whole, "parameter": whole}
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == np.float32
        assert found[name].flags.c_contiguous


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("torch DoubleStorage", np.float64),
        ("torch.cuda HalfStorage", np.float16),
        ("torch BFloat16Storage", ml_dtypes.bfloat16),
        ("torch LongStorage", np.int64),
        ("torch IntStorage", np.int32),
        ("torch ShortStorage", np.int16),
        ("torch CharStorage", np.int8),
        ("torch ByteStorage", np.uint8),
        ("torch.cuda BoolStorage", np.bool_),
    ],
)
def test_reads_dtypes(load, kind, dtype):
    numbers = np.asarray([0, 1, 0, 1, 1, 1]).astype(dtype)
    found = load({"weight": tensor(storage(kind=kind))}, {"0": numbers})["weight"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, numbers.reshape(2, 3))


def test_reads_bytes_of_the_other_order(tmp_path):
    content = pickled({"weight": tensor(storage())})
    path = write_zip(tmp_path / "net.pt", content, {"0": NUMBERS.astype(">f4").tobytes()}, byteorder="big")
    np.testing.assert_array_equal(ddjax.load_state_dict(path)["weight"], NUMBERS.reshape(2, 3))


def test_reads_views_of_storages(tmp_path):
    view = storage(view=(("1", 2, 4),))
    path = write_legacy(tmp_path / "net.pth", pickled({"weight": tensor(view, (2,), (1,), 1)}), {"0": (6, BYTES)})
    np.testing.assert_array_equal(ddjax.load_state_dict(path)["weight"], [3, 4])


def test_bytes_that_are_no_booleans_become_booleans(load):
    found = load({"mask": tensor(storage(kind="torch BoolStorage"))}, {"0": np.arange(6, dtype=np.uint8)})["mask"]
    assert set(found.view(np.uint8).ravel().tolist()) == {0, 1}


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "net"])
def test_finds_the_weights_beside_an_optimizer(load, wrapper):
    optimizer = {"state": {0: {"momentum": tensor(storage())}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    kept = {
        "epoch": 3,
        "best": tensor(storage()),
        wrapper: ordered({"weight": tensor(storage())}),
        "optimizer": optimizer,
    }
    assert list(load(kept)) == ["weight"]


def test_finds_wrapped_wrappers(load):
    assert list(load([{"model": {"state_dict": {"weight": tensor(storage())}}}])) == ["weight"]


def test_numbers_the_networks_of_a_cascade(load):
    found = load({"state_dict": [{"weight": tensor(storage())}, {"weight": tensor(storage(), (6,), (1,))}]})
    assert {name: each.shape for name, each in found.items()} == {"0.weight": (2, 3), "1.weight": (6,)}


def test_drops_prefixes_and_counters(load):
    names = ["module._orig_mod.0.weight", "module.1._orig_mod.bias", "module.1.num_batches_tracked", "n_averaged"]
    assert list(load(dict.fromkeys(names, tensor(storage())))) == ["0.weight", "1.bias"]


def test_keeps_a_prefix_that_not_all_names_have(load):
    names = ["module.weight", "head.weight"]
    assert list(load(dict.fromkeys(names, tensor(storage())))) == names


def test_names_the_entries_when_it_cannot_choose(load):
    state = {"weight": tensor(storage())}
    saved = {"generator": state, "ema": state, "epoch": 1}
    with pytest.raises(ValueError, match=r"no state dict; give one of its entries as entry=...: generator, ema;"):
        load(saved)
    assert list(load(saved, entry="ema")) == ["weight"]
    with pytest.raises(ValueError, match="no entry 'other'; its entries: generator, ema, epoch;"):
        load(saved, entry="other")
    with pytest.raises(ValueError, match="more than one of its entries can be the weights"):
        load({"net": state, "model": state})
    with pytest.raises(ValueError, match="two tensors of one name"):
        load({"_orig_mod.weight": tensor(storage()), "weight": tensor(storage())})


def test_reads_safetensors(tmp_path):
    values = {
        "F32": NUMBERS.reshape(2, 3),
        "BF16": NUMBERS.astype(ml_dtypes.bfloat16),
        "F8_E4M3": NUMBERS.astype(ml_dtypes.float8_e4m3fn),
        "BOOL": np.asarray([True, False]),
        "I64": np.asarray(7),
    }
    header, numbers = {"__metadata__": {"format": "pt"}}, b""
    for dtype, each in values.items():
        offsets = [len(numbers), len(numbers) + each.nbytes]
        header[f"module.{dtype}"] = {"dtype": dtype, "shape": list(each.shape), "data_offsets": offsets}
        numbers += each.tobytes()
    found = ddjax.load_state_dict(write_safetensors(tmp_path / "of_any_name", header, numbers))
    assert list(found) == list(values)
    for dtype, each in values.items():
        assert found[dtype].dtype == each.dtype
        np.testing.assert_array_equal(found[dtype], each)


def test_reads_what_pytorch_writes(tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch, to compare with it")
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Linear(3, 4).bfloat16())
    network[0].weight.data = network[0].weight.data.permute(1, 0, 3, 2)
    optimizer = torch.optim.Adam(network.parameters())
    for name, zip_ in (("zip.pt", True), ("legacy.pt", False)):
        for protocol in (2, 4):
            path = tmp_path / name
            kept = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}
            torch.save(kept, path, _use_new_zipfile_serialization=zip_, pickle_protocol=protocol)
            found, expected = ddjax.load_state_dict(path), network.state_dict()
            assert list(found) == [name for name in expected if "num_batches_tracked" not in name]
            for name, each in found.items():
                np.testing.assert_array_equal(each.astype(np.float32), expected[name].float().numpy())


@pytest.fixture
def published():
    path = os.environ.get("DDJAX_WEIGHTS_DIR")
    if not path or not os.path.isfile(os.path.join(path, "kw_mnist.pth")):
        pytest.skip("needs the published networks: set DDJAX_WEIGHTS_DIR to their directory")
    return pathlib.Path(path)


# The number of tensors, the last two, and the hash of all numbers, as PyTorch 2.13 reads them.
PUBLISHED = {
    "kw_mnist.pth": (8, {"7.weight": (10, 100), "7.bias": (10,)}, "2bfb024368fb84a3"),
    "trades_mnist_smallcnn.pth": (
        14,
        {"classifier.fc3.weight": (10, 200), "classifier.fc3.bias": (10,)},
        "3d7c4e7ff0511c18",
    ),
    "mnist_a_adv.pth": (8, {"7.weight": (10, 100), "7.bias": (10,)}, "fbad8675fe5fb2f4"),
    "mnist_cnn_a_adv.pth": (8, {"7.weight": (10, 100), "7.bias": (10,)}, "fbad8675fe5fb2f4"),
    "resnet2b.pth": (16, {"linear2.weight": (10, 100), "linear2.bias": (10,)}, "8259e25e20580f90"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_reads_published_networks(published, name):
    count, last, digest = PUBLISHED[name]
    found = ddjax.load_state_dict(published / name)
    assert len(found) == count
    assert {name: each.shape for name, each in list(found.items())[-2:]} == last
    assert hashlib.sha256(b"".join(each.tobytes() for each in found.values())).hexdigest()[:16] == digest


def test_reads_a_published_directory(published):
    found = ddjax.load_weights(published / "rsl18a")
    assert {name: each.shape for name, each in found.items()} == {
        "B1": (500,),
        "B2": (10,),
        "W1": (784, 500),
        "W2": (500, 10),
    }


def test_page_has_the_hashes_of_published_networks(published):
    page = pathlib.Path(__file__).parents[2] / "docs" / "guide" / "weights.md"
    hashes = re.findall(r"^([0-9a-f]{64})  (\S+)$", page.read_text(), re.MULTILINE)
    assert len(hashes) == 9
    for digest, name in hashes:
        assert hashlib.sha256((published / name).read_bytes()).hexdigest() == digest
