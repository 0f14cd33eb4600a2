"""Defensive distillation at one temperature: `python -m launch.distill --recipe=mnist_quick --temperature=100`.

Trains a teacher at the temperature and a student on its soft labels. With `--label_noise` the student learns the soft
labels of images with small random noise, and with `--finetune_epochs` then the true labels of the images without it.
Both are described by a public re-implementation, and are not part of the paper's method. Writes `config.json`,
`results.jsonl` with both test accuracies, and a checkpoint of each under `checkpoints/` for `launch.attack`.
"""

from absl import flags

from ddjax import classifier

from . import common, loading

FLAGS = flags.FLAGS
_TEMPERATURE = flags.DEFINE_float("temperature", 100.0, "The softmax temperature of teacher and student in training.")
_LABEL_NOISE = flags.DEFINE_float("label_noise", 0.0, "Standard deviation of noise on the student's images in [0, 1].")
_FINETUNE_EPOCHS = flags.DEFINE_integer("finetune_epochs", 0, "Epochs of a noisy student on the true labels.")


def main() -> None:
    """Trains teacher and student and measures their accuracy."""
    classifier.check_temperature(_TEMPERATURE.value)
    if not 0 <= _LABEL_NOISE.value < float("inf"):
        raise ValueError(f"--label_noise must be at least 0 and finite, got {_LABEL_NOISE.value}")
    if _FINETUNE_EPOCHS.value < 0 or (_FINETUNE_EPOCHS.value and not _LABEL_NOISE.value):
        raise ValueError(f"--finetune_epochs={_FINETUNE_EPOCHS.value} must be at least 0, and goes with --label_noise")
    # The plain method's runs are told by the temperature alone.
    names = ("label_noise", "finetune_epochs") if _LABEL_NOISE.value else ()
    begun = loading.begin(common.workdir("distill"), common.flags_of_training("temperature", *names))
    run = begun.open()
    trainer, chosen = loading.trainer_of(run, begun.recipe, begun.train), (FLAGS.seed, _TEMPERATURE.value)
    if _LABEL_NOISE.value:
        teacher, student = trainer.distilled_with_noise(*chosen, _LABEL_NOISE.value, _FINETUNE_EPOCHS.value)
    else:
        teacher, student = trainer.distilled(*chosen)
    networks = {"teacher": teacher.logits_fn, "student": student.logits_fn}
    with_temperature = {name: (logits_fn, _TEMPERATURE.value) for name, logits_fn in networks.items()}
    common.record_accuracies(run, with_temperature, begun.test)
    common.print_accuracies(run)


if __name__ == "__main__":
    common.run(main)
