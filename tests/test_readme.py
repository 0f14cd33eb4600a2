import pathlib
import re

import jax

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


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


def test_generated_tables_are_filled_in():
    for block in ("digits", "mnist_quick", "cifar10_quick"):
        body = README.split(f"<!-- BEGIN {block} -->")[1].split(f"<!-- END {block} -->")[0]
        assert body.count("\n| ") >= 4
