import threading
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ddjax import data, folders

RNG = np.random.default_rng(0)


def photograph(height=11, width=7, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8))


@pytest.fixture
def tree(tmp_path):
    """Ten images of each of three animals, and what is no image."""
    root = tmp_path / "raw-img"
    for folder in ("gatto", "cane", "farfalla"):
        (root / folder).mkdir(parents=True)
        for number in range(10):
            photograph().save(root / folder / f"{number}.{'png' if number % 2 else 'bmp'}")
        (root / folder / ".hidden.png").write_bytes(b"")
        (root / folder / "notes.txt").write_text("no image")
    return root


@pytest.fixture
def load(tree, tmp_path):
    def load(split="train", image_size=8, root=tree, **settings):
        settings = {"cache_dir": tmp_path / "cache"} | settings
        return folders.load(f"folder:{root}", split, image_size=image_size, **settings)

    return load


def expected(path, size):
    image = Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def test_classes_are_in_the_order_of_their_english_names_and_pixels_are_pillows(load, tree):
    train, test = load("train"), load("test")
    assert train.class_names == test.class_names == ("butterfly", "cat", "dog")
    assert (len(train), len(test)) == (24, 6)
    assert train.images.shape == (24, 8, 8, 3)
    np.testing.assert_array_equal(np.bincount(test.labels), [2, 2, 2])
    # Every file is in one of the two splits, under its class.
    found = {
        (label, image.tobytes())
        for part in (train, test)
        for label, image in zip(part.labels, part.images, strict=True)
    }
    names = {"butterfly": "farfalla", "cat": "gatto", "dog": "cane"}
    assert found == {
        (label, expected(path, 8).tobytes())
        for label, name in enumerate(train.class_names)
        for path in (tree / names[name]).glob("[0-9]*")
    }
    np.testing.assert_array_equal(train.indices, np.arange(24))
    assert train.on_disk
    assert not load("train", root=tree).images.flags.writeable
    assert train.decoded_per_second > 0


def test_the_split_depends_on_names_alone(load, tree, tmp_path):
    before = load("test")
    other = tmp_path / "elsewhere"
    # Written in another order, at other times.
    for path in sorted(tree.glob("*/[0-9]*"), reverse=True):
        target = other / path.relative_to(tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    np.testing.assert_array_equal(load("test", root=other).images, before.images)
    # Mixed, and so are the first examples.
    assert len(set(load("train").labels[:12].tolist())) == 3
    english = tmp_path / "english"
    other.rename(english)
    for italian, name in folders.ANIMALS10.items():
        if (english / italian).exists():
            (english / italian).rename(english / name)
    assert load("test", root=english).class_names == before.class_names
    np.testing.assert_array_equal(load("test", root=english).images, before.images)


def test_directories_of_splits(load, tree, tmp_path):
    root = tmp_path / "split"
    for split, number in (("train", 3), ("val", 2)):
        for folder in ("b", "a"):
            (root / split / folder).mkdir(parents=True)
            for i in range(number):
                photograph().save(root / split / folder / f"{i}.png")
    train, test = load("train", root=root), load("test", root=root)
    assert train.class_names == ("a", "b")
    assert sorted(train.labels.tolist()) == [0, 0, 0, 1, 1, 1]
    found = {(label, image.tobytes()) for label, image in zip(test.labels, test.images, strict=True)}
    paths = [(label, root / "val" / name / f"{i}.png") for label, name in enumerate("ab") for i in range(2)]
    assert found == {(label, expected(path, 8).tobytes()) for label, path in paths}
    for path in (root / "val" / "b").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="class 'b' has 0 images for split 'test'; at least 1 are needed"):
        load("train", root=root)


def test_a_cache_serves_until_the_folder_changes(load, tree, tmp_path, monkeypatch):
    first = load("train")
    decode = folders._decode
    monkeypatch.setattr(folders, "_decode", None)
    np.testing.assert_array_equal(load("train").images, first.images)
    monkeypatch.setattr(folders, "_decode", decode)
    photograph().save(tree / "cane" / "new.png")
    assert len(load("train")) + len(load("test")) == 31
    (place,) = (tmp_path / "cache" / "folders").iterdir()
    assert len(list(place.iterdir())) == 1
    (cache,) = place.iterdir()
    # What a full disk or a stopped copy leaves.
    with open(cache / "train", "r+b") as file:
        file.truncate(100)
    assert load("train").images[-1].any()
    (cache / "index.json").write_text("{")
    assert load("train").images[-1].any()
    # Another size is another cache.
    assert load("train", image_size=4).images.shape[1:] == (4, 4, 3)
    assert len(list((tmp_path / "cache" / "folders").iterdir())) == 2


def test_damaged_images_are_named_and_refused_or_left_out(load, tree, monkeypatch):
    whole = (tree / "gatto" / "1.png").read_bytes()
    (tree / "gatto" / "1.png").write_bytes(whole[: len(whole) // 2])
    (tree / "cane" / "2.bmp").write_bytes(b"")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tree / "cane" / "3.png")
    for _ in range(2):  # decoded, and from the cache
        with pytest.raises(folders.UnreadableImageError, match="3 of 30 images in .* cannot be read") as caught:
            load("train")
        for name in ("gatto/1.png", "cane/2.bmp", "cane/3.png (it has more than 8 bits", "--unreadable=skip"):
            assert name in str(caught.value)
    with pytest.warns(UserWarning, match=r"gatto/1\.png .*they are left out"):
        train = load("train", unreadable="skip")
    with pytest.warns(UserWarning, match="left out"):
        test = load("test", unreadable="skip")
    assert len(train) + len(test) == 27
    assert np.bincount(np.concatenate([train.labels, test.labels])).tolist() == [10, 9, 8]
    # Many are counted.
    for path in tree.glob("cane/[0-9]*"):
        path.write_bytes(b"")
    for path in tree.glob("gatto/[0-5]*"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="and 6 more"):
        load("train")
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match="no readable image of class 'dog' for split 'train'"),
    ):
        load("train", unreadable="skip")


def test_all_kinds_of_images_become_upright_rgb(tmp_path):
    pixels = np.zeros((6, 6, 3), np.uint8)
    pixels[:3] = 255
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 3  # lies upside down
    image.save(tmp_path / "turned.png", exif=exif)
    image.convert("L").save(tmp_path / "gray.png")
    image.convert("P").save(tmp_path / "palette.gif")
    image.convert("CMYK").save(tmp_path / "cmyk.tiff")
    image.convert("RGBA").save(tmp_path / "alpha.webp", lossless=True)
    for path in tmp_path.iterdir():
        decoded = folders._decode(path, 6)
        assert not isinstance(decoded, str), decoded
        np.testing.assert_array_equal(decoded, pixels[::-1] if path.stem == "turned" else pixels)


def test_other_class_names(load):
    names = {"gatto": "Katze", "cane": "Hund"}
    assert load("train", class_names=names).class_names == ("Hund", "Katze", "farfalla")
    with pytest.raises(ValueError, match="has no directory topo to name; it has cane, farfalla, gatto"):
        load("train", class_names={"topo": "mouse"})
    with pytest.raises(ValueError, match="two directories would have one class name"):
        load("train", class_names={"gatto": "pet", "cane": "pet"})


def test_bad_use(load, tree, tmp_path, monkeypatch):
    with pytest.raises(data.DatasetUnavailableError, match="no folder .*nowhere.*kaggle datasets download"):
        load("train", root=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no split 'dev'; it has train, test"):
        load("dev")
    with pytest.raises(ValueError, match="unknown way with unreadable images 'ignore'; known: refuse, skip"):
        load("train", unreadable="ignore")
    with pytest.raises(ValueError, match="the image size must be at least 1, got 0"):
        load("train", image_size=0)
    with pytest.raises(ValueError, match="at least two classes, found \\[\\]"):
        load("train", root=tree / "cane")
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda path: SimpleNamespace(free=5000))
    with pytest.raises(data.DatasetUnavailableError, match="it needs 0.0 GB.*choose another --cache_dir"):
        load("train")
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(data.DatasetUnavailableError, match="choose another --cache_dir"):
        load("train", cache_dir=blocked)
    for path in list(tree.glob("cane/[0-9]*"))[1:]:
        path.unlink()
    with pytest.raises(ValueError, match="class 'cane' has 1 images; at least 2 are needed"):
        load("train")


def test_nothing_is_left_of_a_cache_that_was_not_finished(load, tmp_path, monkeypatch):
    def broken(path, size):
        raise KeyboardInterrupt

    monkeypatch.setattr(folders, "_decode", broken)
    with pytest.raises(KeyboardInterrupt):
        load("train")
    (place,) = (tmp_path / "cache" / "folders").iterdir()
    assert list(place.iterdir()) == []


def test_through_the_name_of_a_data_set(tree, tmp_path):
    settings = {"image_size": 8, "cache_dir": tmp_path / "cache"}
    whole = data.load(f"folder:{tree}", "train", folder=settings)
    assert whole.on_disk
    rest = data.load(f"folder:{tree}", "train", skip=4, folder=settings)
    assert rest.on_disk
    np.testing.assert_array_equal(rest.images, whole.images[4:])
    np.testing.assert_array_equal(rest.indices, np.arange(4, 24))
    some = data.load(f"folder:{tree}", "train", num_examples=6, folder=settings)
    assert not some.on_disk
    np.testing.assert_array_equal(some.images, whole.images[some.indices])
    assert np.bincount(some.labels).tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match="must be given \\(--image_size\\)"):
        data.load(f"folder:{tree}", "train")


def test_batches_are_read_ahead_in_order_and_not_further(tmp_path):
    images = np.memmap(tmp_path / "images", np.uint8, "w+", shape=(50, 2, 2, 3))
    images[:] = RNG.integers(0, 256, images.shape)
    rows = RNG.integers(0, 50, (6, 2, 4))
    batches = folders.Batches(images, ahead=2)
    started, enough = [], threading.Event()
    read = batches._read

    def counted(some):
        started.append(some)
        if len(started) == 3:
            enough.set()
        return read(some)

    batches._read = counted
    reader = batches.read(rows)
    np.testing.assert_array_equal(next(reader), images[rows[0]])
    assert enough.wait(10)
    assert len(started) == 3
    for got, some in zip(reader, rows[1:], strict=True):
        np.testing.assert_array_equal(got, images[some])
    assert batches.images_read == 48
    assert batches.seconds_reading > 0
