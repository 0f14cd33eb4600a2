"""Trains a recipe's network on the true labels: `python -m launch.train --recipe=mnist_quick`.

Writes `config.json`, `results.jsonl` with the test accuracy, and a checkpoint under `checkpoints/` for `launch.attack`.
`--temperature` divides the logits in training, as for the teacher of defensive distillation.
"""

from absl import flags

from ddjax import classifier, data, runs
from launch import common

FLAGS = flags.FLAGS
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "The softmax temperature in training.")


def main() -> None:
    """Trains one network and measures its accuracy."""
    classifier.check_temperature(_TEMPERATURE.value)
    recipe = common.recipe_from_flags()
    workdir, flags_of_run = common.workdir("train"), common.flags_of_training("temperature")
    runs.check_workdir(workdir, flags_of_run)
    train, test = common.load_data(recipe)
    common.check_network(recipe, train)
    run = runs.Run(workdir, flags_of_run, common.describe(recipe, train, test))
    trainer = common.Trainer(run, recipe, train)
    teacher = _TEMPERATURE.value != 1.0
    state = trainer.plain(FLAGS.seed, _TEMPERATURE.value, "teacher" if teacher else "baseline")
    temperature = _TEMPERATURE.value if teacher else None
    where = {"seed": FLAGS.seed, "temperature": temperature, "network": "teacher" if teacher else "baseline"}
    common.record_accuracy(run, where, state, data.to_float(test.images), test.labels)
    common.print_accuracies(run)


if __name__ == "__main__":
    common.run(main)
