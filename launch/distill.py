"""Defensive distillation at one temperature: `python -m launch.distill --recipe=mnist_quick --temperature=100`.

Trains a teacher at the temperature and a student on its soft labels. Writes `config.json`, `results.jsonl` with both
test accuracies, and a checkpoint of each under `checkpoints/` for `launch.attack`.
"""

from absl import flags

from ddjax import classifier, data
from launch import common
from launch.trainer import Trainer

FLAGS = flags.FLAGS
_TEMPERATURE = flags.DEFINE_float("temperature", 100.0, "The softmax temperature of teacher and student in training.")


def main() -> None:
    """Trains teacher and student and measures their accuracy."""
    classifier.check_temperature(_TEMPERATURE.value)
    run, recipe, train, test = common.open_training_run("distill", "temperature")
    networks = Trainer(run, recipe, train).distilled(FLAGS.seed, _TEMPERATURE.value)
    for role, state in zip(("teacher", "student"), networks, strict=True):
        where = {"seed": FLAGS.seed, "temperature": _TEMPERATURE.value, "network": role}
        common.record_accuracy(run, where, state, data.to_float(test.images), test.labels)
    common.print_accuracies(run)


if __name__ == "__main__":
    common.run(main)
