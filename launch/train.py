"""Trains a recipe's network on the true labels: `python -m launch.train --recipe=mnist_quick`.

Writes `config.json`, `results.jsonl` with the test accuracy, and a checkpoint under `checkpoints/` for `launch.attack`.
`--temperature` divides the logits in training, as for the teacher of defensive distillation. Photographs are trained on
by `--recipe=animals10 --dataset=folder:PATH`, where PATH holds a directory of images for each class; the images
decoded, read and trained on in a second are printed and recorded. The density of PixelDefend and the generator of
Defense-GAN are trained by their recipes, such as `pixelcnn_mnist` and `gan_mnist`, which leave a report with samples.
"""

from absl import flags

from ddjax import classifier

from . import common, generating, loading
from .trainer import trainer_of

FLAGS = flags.FLAGS
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "The softmax temperature in training.")


def main() -> None:
    """Trains one network and measures its accuracy."""
    classifier.check_temperature(_TEMPERATURE.value)
    if generating.is_generative(FLAGS.recipe):
        if _TEMPERATURE.value != 1.0:
            raise ValueError(f"--temperature is for classifiers, not for {FLAGS.recipe}")
        generating.train()
        return
    run, recipe, train, test = loading.open_training_run("train", "temperature")
    trainer = trainer_of(run, recipe, train)
    teacher = _TEMPERATURE.value != 1.0
    state = trainer.plain(FLAGS.seed, _TEMPERATURE.value, "teacher" if teacher else "baseline")
    temperature = _TEMPERATURE.value if teacher else None
    where = {"seed": FLAGS.seed, "temperature": temperature, "network": "teacher" if teacher else "baseline"}
    common.record_accuracy(run, where, state, test.images, test.labels)
    common.print_accuracies(run)
    rates = trainer.rates()
    if rates is not None:
        run.append(measure="loader", **where, **rates)
        told = {"decoded": "decoded", "read": "read from the cache", "trained": "trained on"}
        known = [f"{rate:.4g} {told[name.removesuffix('_per_second')]}" for name, rate in rates.items() if rate]
        print(f"images a second: {', '.join(known)}")


if __name__ == "__main__":
    common.run(main)
