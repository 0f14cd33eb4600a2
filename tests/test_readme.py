"""What README.md and docs/ say: the commands, the code, the tables, the pictures and the links."""

import pathlib
import re

import jax
import pytest

import ddjax
from docs import update_results
from launch import pages

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
RESULTS = (ROOT / "docs" / "results.md").read_text()
# One fence after another, so that the end of one block is not read as the start of the next.
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(text, language):
    return [body for name, body in FENCE.findall(text) if name == language]


def test_readme_has_the_two_commands():
    commands = [body.strip() for body in blocks(README, "bash")]
    assert commands == ["pip install -e . && python -m launch.sweep", "pip install -e '.[test]' && pytest"]


def test_readme_is_short():
    assert len(README.splitlines()) < 150


def test_readme_names_all_attacks():
    (line,) = re.findall(r"^\* Attacks: (.*?)\.$", README, re.DOTALL | re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", line)) == {name for name in ddjax.attacks.ATTACKS if hasattr(ddjax, name)}


@pytest.mark.parametrize(
    "page", ["README.md", "docs/guide/attacks.md", "docs/guide/defenses.md", "docs/guide/tables.md"]
)
def test_examples_run_as_printed(page, capsys):
    namespace = {}
    # A reader has no strict promotion rules.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks((ROOT / page).read_text(), "python"):
            exec(block, namespace)
    assert float(namespace["result"].success.mean()) > 0.5
    printed = capsys.readouterr().out
    assert "nan" not in printed
    assert len(printed.splitlines()) >= 4


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "docs" / "results").iterdir()))
def test_results_have_the_table_of_each_run(name):
    assert update_results.blocks(RESULTS)[name] == pages.table(ROOT / "docs" / "results" / name)


def test_update_of_results_replaces_a_changed_table():
    old = update_results.blocks(RESULTS)["digits"]
    assert update_results.update(RESULTS.replace(old, "| T |")) == RESULTS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_exist(page):
    text = page.read_text()
    for link in re.findall(r"\]\((?!https?:)(.*?)\)", text):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)$", FENCE.sub("", target.read_text()), re.MULTILINE) if anchor else []
        anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in anchors, link
