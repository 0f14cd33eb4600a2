"""The page on attacking one's own model runs as printed, in every framework that is installed."""

import pathlib
import re

import pytest

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "guide" / "your_model.md").read_text()
TABS = dict(re.findall(r"<summary><b>(.*?)</b></summary>\n\n```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
FIRST, *_ = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
(LAST,) = re.findall(r"^Then:\n\n```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
PACKAGES = {"Equinox": "equinox", "Haiku": "haiku", "PyTorch": "torch", "Keras": "keras"}


def test_page_has_a_tab_for_every_framework():
    wanted = {"flax.linen", "flax.nnx", "Equinox", "Haiku", "PyTorch", "Keras", "A plain function"}
    assert set(TABS) == wanted | {"A PyTorch checkpoint, without PyTorch"}


@pytest.mark.parametrize("name", TABS)
def test_tab_runs_as_printed(name, capsys):
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name], reason=f"{name} is not installed")
    namespace = {"__name__": "page"}
    exec(FIRST, namespace)
    exec(TABS[name], namespace)
    # The last part of the page with one attack that is fast to compile.
    exec(LAST.replace("epsilon=8 / 255", 'epsilon=8 / 255, attacks=["fgsm"]'), namespace)
    printed = capsys.readouterr().out
    assert "robust accuracy" in printed
    assert ("warning: the model returns probabilities" in printed) == (name == "Keras")
