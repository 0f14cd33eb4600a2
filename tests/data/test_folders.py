import resource
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ddjax import data
from ddjax.data import decoded, folders

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
        return folders.load_folder(root, split, image_size=image_size, **settings)

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
    for italian, name in data.ANIMALS10.items():
        if (english / italian).exists():
            (english / italian).rename(english / name)
    assert load("test", root=english).class_names == before.class_names
    np.testing.assert_array_equal(load("test", root=english).images, before.images)


@pytest.fixture
def make(tmp_path):
    """Makes images by their paths below a new folder."""

    def make(*paths, name="folder"):
        root = tmp_path / name
        for path in paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            photograph().save(root / path)
        return root

    return make


def pairs(dataset):
    return {(label, image.tobytes()) for label, image in zip(dataset.labels, dataset.images, strict=True)}


def pixels(root, paths, labels):
    return {(label, expected(root / path, 8).tobytes()) for label, path in zip(labels, paths, strict=True)}


@pytest.mark.parametrize(
    ("train_name", "test_name", "val_name"),
    [("train", "test", "val"), ("Train", "TEST", "Valid"), ("training", "Testing", "validation")],
)
def test_train_test_and_validation_are_three_splits(load, make, train_name, test_name, val_name):
    parts = {
        "train": [f"{train_name}/{folder}/{i}.png" for folder in "ab" for i in range(3)],
        "test": [f"{test_name}/{folder}/{i}.png" for folder in "ab" for i in range(2)],
        "validation": [f"{val_name}/{folder}/0.png" for folder in "ab"],
    }
    root = make(*parts["train"], *parts["test"], *parts["validation"])
    for split, paths in parts.items():
        loaded = load(split, root=root)
        assert (loaded.split, loaded.class_names) == (split, ("a", "b"))
        count = len(paths) // 2
        assert pairs(loaded) == pixels(root, paths, [0] * count + [1] * count)
        assert len(loaded) == len(paths)


def test_validation_images_serve_as_test_where_there_is_no_test_and_that_is_said(load, make):
    root = make(*(f"train/{folder}/{i}.png" for folder in "ab" for i in range(3)), "val/a/0.png", "val/b/0.png")
    with pytest.warns(UserWarning, match="no directory of test images; its validation images are the test images"):
        test = load("test", root=root)
    validation = load("validation", root=root)
    assert (test.split, validation.split) == ("validation", "validation")
    assert pairs(test) == pairs(validation) == pixels(root, ["val/a/0.png", "val/b/0.png"], [0, 1])
    assert len(load("train", root=root)) == 6


def test_a_fifth_of_the_training_images_is_the_test_set_where_there_is_no_other_split(load, make):
    root = make(*(f"Train/{folder}/{i}.png" for folder in "ab" for i in range(10)))
    train, test = load("train", root=root), load("test", root=root)
    assert np.bincount(train.labels).tolist() == [8, 8]
    assert np.bincount(test.labels).tolist() == [2, 2]
    with pytest.raises(ValueError, match="has no split 'validation'; it has train, test"):
        load("validation", root=root)


def test_a_class_has_all_images_below_its_directory(load, make):
    names = ["indoor/0.png", "indoor/1.png", "outdoor/day/0.png", "0.png"]
    root = make(*(f"{folder}/{name}" for folder in ("cat", "dog") for name in names))
    (root / "cat" / "again").symlink_to(root / "cat", target_is_directory=True)
    train, test = load("train", root=root), load("test", root=root)
    assert train.class_names == ("cat", "dog")
    assert np.bincount(np.concatenate([train.labels, test.labels])).tolist() == [4, 4]
    paths = [f"{folder}/{name}" for folder in ("cat", "dog") for name in names]
    assert pairs(train) | pairs(test) == pixels(root, paths, [0] * 4 + [1] * 4)


def test_hidden_files_and_what_macos_adds_are_ignored(load, make):
    root = make(*(f"{folder}/{i}.png" for folder in ("cat", "dog") for i in range(5)), "__MACOSX/cat/0.png")
    for path in (".git/x.png", "cat/.thumbnails/0.png", "dog/__MACOSX/0.png", "dog/._0.png"):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(b"no image")
    train, test = load("train", root=root), load("test", root=root)
    assert train.class_names == ("cat", "dog")
    assert len(train) + len(test) == 10


def test_a_class_may_be_called_train(load, make):
    root = make(*(f"{folder}/{i}.png" for folder in ("car", "train") for i in range(5)))
    assert load("train", root=root).class_names == ("car", "train")


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["train/a/0.png", "cat/0.png"], "holds train, which name splits, beside cat, which do not"),
        (["train/0.png", "test/0.png", "cat/0.png"], "holds test, train, which name splits, beside cat"),
        (["train/a/0.png", "Train/b/0.png"], "holds two directories for split 'train': Train and train"),
        (["train/a/0.png", "val/a/0.png", "valid/b/0.png"], "two directories for split 'validation': val and valid"),
        (["test/a/0.png", "val/b/0.png"], "holds test, val, but no directory train"),
        (["train/a/0.png", "train/b/0.png", "test/0.png"], "test holds images, but no directory for each class"),
        (["0.png", "1.png"], "holds images, but no directory for each class"),
        (["cat/train/0.png", "cat/test/0.png", "dog/0.png"], "cat holds test, train, which name splits: splits must"),
        (["set/cat/0.png", "set/dog/0.png"], "two classes, found set; if the classes are below it, name that"),
        (["train/a/0.png", "train/b/0.png", "test/a/0.png"], "class 'b' has 0 images for split 'test'; at least 1"),
    ],
)
def test_what_cannot_be_understood_is_refused(load, make, paths, message):
    with pytest.raises(ValueError, match=message):
        load("train", root=make(*paths))


def test_images_outside_of_the_classes_are_told_of(load, make):
    root = make(*(f"{folder}/{i}.png" for folder in ("cat", "dog") for i in range(5)), "preview.png")
    with pytest.warns(
        UserWarning, match="1 images in .* are in no directory of a class and are left out, such as prev"
    ):
        assert len(load("train", root=root)) == 8


def test_image_files_that_pillow_does_not_know_are_named(load, make):
    root = make(*(f"{folder}/{i}.png" for folder in ("cat", "dog") for i in range(5)))
    (root / "cat" / "drawing.svg").write_text("<svg/>")
    with pytest.raises(data.UnreadableImageError, match="1 of 11 images .* cat/drawing.svg"):
        load("train", root=root)


def test_a_cache_serves_until_the_folder_changes(load, tree, tmp_path, monkeypatch):
    first = load("train")
    decode = decoded.decode_image
    monkeypatch.setattr(decoded, "decode_image", None)
    np.testing.assert_array_equal(load("train").images, first.images)
    monkeypatch.setattr(decoded, "decode_image", decode)
    photograph().save(tree / "cane" / "new.png")
    assert len(load("train")) + len(load("test")) == 31
    (place,) = (tmp_path / "cache" / "folders").iterdir()
    assert len(list(place.iterdir())) == 1
    (cache,) = place.iterdir()
    # What a full disk or a stopped copy leaves.
    with open(cache / "train.npy", "r+b") as file:
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
        with pytest.raises(data.UnreadableImageError, match="3 of 30 images in .* cannot be read") as caught:
            load("train")
        for name in ("gatto/1.png", "cane/2.bmp", "cane/3.png (it has more than 8 bits", "unreadable=skip"):
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
        image = decoded.decode_image(path, 6)
        assert not isinstance(image, str), image
        np.testing.assert_array_equal(image, pixels[::-1] if path.stem == "turned" else pixels)


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
    with pytest.raises(ValueError, match="holds images, but no directory for each class"):
        load("train", root=tree / "cane")
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda path: SimpleNamespace(free=5000))
    with pytest.raises(data.DatasetUnavailableError, match="0.0 GB are needed.*choose another cache_dir"):
        load("train")
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(data.DatasetUnavailableError, match="choose another cache_dir"):
        load("train", cache_dir=blocked)
    for path in list(tree.glob("cane/[0-9]*"))[1:]:
        path.unlink()
    with pytest.raises(ValueError, match="class 'cane' has 1 images; at least 2 are needed"):
        load("train")


def test_full_disk_is_told_and_leaves_nothing(load, tmp_path):
    # A limit to the size of files fails a write as a full disk does.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(data.DatasetUnavailableError, match="cannot be kept in .*; choose another cache_dir"):
            load("train")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (place,) = (tmp_path / "cache" / "folders").iterdir()
    assert list(place.iterdir()) == []


def test_missing_home_is_told(load, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    for cache_dir in (None, "~/cache"):
        with pytest.raises(data.DatasetUnavailableError, match="no home directory; choose another cache_dir"):
            load("train", cache_dir=cache_dir)
    with pytest.raises(data.DatasetUnavailableError, match="no home directory for ~/photos: give the whole path"):
        load("train", root="~/photos")


def test_nothing_is_left_of_a_cache_that_was_not_finished(load, tmp_path, monkeypatch):
    def broken(path, size):
        raise KeyboardInterrupt

    monkeypatch.setattr(decoded, "decode_image", broken)
    with pytest.raises(KeyboardInterrupt):
        load("train")
    (place,) = (tmp_path / "cache" / "folders").iterdir()
    assert list(place.iterdir()) == []


def test_through_the_name_of_a_data_set(tree, tmp_path):
    settings = {"image_size": 8, "cache_dir": tmp_path / "cache"}
    whole = data.load(f"folder:{tree}", "train", **settings)
    assert whole.on_disk
    rest = data.load(f"folder:{tree}", "train", skip=4, **settings)
    assert rest.on_disk
    np.testing.assert_array_equal(rest.images, whole.images[4:])
    np.testing.assert_array_equal(rest.indices, np.arange(4, 24))
    some = data.load(f"folder:{tree}", "train", num_examples=6, **settings)
    assert not some.on_disk
    np.testing.assert_array_equal(some.images, whole.images[some.indices])
    assert np.bincount(some.labels).tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match="must be given \\(image_size\\)"):
        data.load(f"folder:{tree}", "train")
