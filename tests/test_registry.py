import dataclasses
import sys
import textwrap

import pytest

from ddjax import checks, registry


@dataclasses.dataclass(frozen=True)
class Thing:
    name: str
    function: object = None


def _settings(*, steps: int = 3, size: float = 0.5, radius: float | None = None, norm: str = "l2", fast: bool = False):
    return steps, size, radius, norm, fast


@pytest.fixture
def things():
    found = registry.Registry("thing", "THINGS")
    found.register(Thing("one"))
    return found


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "userpackage").mkdir()
    (tmp_path / "userpackage" / "__init__.py").write_text("")
    (tmp_path / "userpackage" / "module.py").write_text(
        textwrap.dedent("""
        from tests.test_registry import Thing
        THINGS = (Thing("two"),)
        """)
    )
    (tmp_path / "userpackage" / "silent.py").write_text("")
    (tmp_path / "userpackage" / "broken.py").write_text("raise RuntimeError('broken on purpose')")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith("userpackage")]:
        del sys.modules[name]


def test_registry_finds_registered_names_and_import_paths(things, package):
    assert things.find("one") == Thing("one")
    assert things.find("userpackage.module:two") == Thing("two")
    assert list(things) == ["one"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("three", "known: one"),
        ("userpackage.module:three", "it declares: two"),
        ("userpackage.silent:two", r"THINGS = \(...,\)"),
        ("userpackage.broken:two", "broken on purpose"),
        ("no.such:two", "cannot import"),
        ("", "unknown thing ''"),
    ],
)
def test_registry_refuses_unknown_names(things, package, name, message):
    with pytest.raises(ValueError, match=message):
        things.find(name)


def test_registry_refuses_a_second_declaration_of_a_name(things):
    with pytest.raises(ValueError, match="already"):
        things.register(Thing("one", function=_settings))


def test_registry_collects_what_files_declare(things):
    import ddjax.attacks

    empty = registry.Registry("nothing", "NO_SUCH_TUPLE")
    empty.collect(ddjax.attacks)
    assert len(empty) == 0


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("one", ("one", "")),
        ("one:size=1", ("one", "size=1")),
        ("one:size", ("one", "size")),
        ("a.b:two", ("a.b:two", "")),
        ("a.b:two:size=1,steps=2", ("a.b:two", "size=1,steps=2")),
        ("two:size=1", ("two", "size=1")),
    ],
)
def test_names_and_settings_are_split(things, text, split):
    assert things.split(text) == split


def test_settings_are_read_by_their_types():
    parameters = registry.settings_of(_settings)
    text = "steps=4,size=8/255,radius=2,norm=linf,fast=True"
    found = registry.read_settings("--thing", "one", text, parameters)
    assert found == {"steps": 4, "size": 8 / 255, "radius": 2.0, "norm": "linf", "fast": True}
    assert registry.read_settings("--thing", "one", "radius=none", parameters) == {"radius": None}
    assert registry.read_settings("--thing", "one", "", parameters) == {}
    assert [name for name, each in parameters.items() if registry.is_real(each)] == ["size", "radius"]


@pytest.mark.parametrize(
    "text",
    [
        "steps=1.5",
        "size=nan",
        "size=1e309",
        "size=1/0",
        "size=a",
        "fast=1",
        "speed=1",
        "size",
        "size=",
        "size=1,size=2",
    ],
)
def test_bad_settings_are_refused(text):
    with pytest.raises(ValueError, match="--thing"):
        registry.read_settings("--thing", "one", text, registry.settings_of(_settings))


def test_unknown_setting_lists_the_known_ones_with_defaults():
    with pytest.raises(ValueError, match="steps=3, size=0.5, radius=None"):
        registry.read_settings("--thing", "one", "speed=1", registry.settings_of(_settings))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 2, [0.5], "0.5", None])
def test_numbers_out_of_range_are_refused(value):
    with pytest.raises((ValueError, TypeError), match="size"):
        checks.check_number("size", value, least=0, most=1)


@pytest.mark.parametrize("value", [0, 2.5, True, "3", None])
def test_numbers_that_are_not_whole_are_refused(value):
    with pytest.raises(ValueError, match="steps"):
        checks.check_whole_number("steps", value, least=1)
