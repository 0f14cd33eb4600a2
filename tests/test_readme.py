import pathlib
import re

import jax
import pytest

from ddjax import report

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_two_commands_stand_there_exactly():
    commands = re.findall(r"```bash\n(.*?)\n```", README, re.DOTALL)
    assert commands[:2] == ["pip install -e . && python -m launch.sweep", "pip install -e '.[test]' && pytest"]


def test_the_examples_run_as_printed(capsys):
    namespace = {}
    # A reader has no strict promotion rules.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
            exec(block, namespace)
    assert float(namespace["result"].success.mean()) > 0.5
    assert len(capsys.readouterr().out.splitlines()) >= 4


@pytest.mark.parametrize(
    "block",
    [
        "digits",
        "mnist_quick",
        "small_mnist",
        "cifar10_quick",
        "carlini_mnist_quick",
        "transfer_mnist_quick",
        "evaluate_mnist_quick",
        "obfuscated_quick",
        "pixelcnn_mnist",
        "gan_mnist",
        "masking_mnist_quick",
        "benchmark_mnist",
        "benchmark_generative",
    ],
)
def test_tables_and_pictures_come_from_result_files(block):
    results = ROOT / "docs" / "results" / block
    body = README.split(f"<!-- BEGIN {block} -->")[1].split(f"<!-- END {block} -->")[0]
    assert body.strip() == report.readme_table(results)
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / picture).exists()
