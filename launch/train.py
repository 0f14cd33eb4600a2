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

FLAGS = flags.FLAGS
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "The softmax temperature in training.")


def main() -> None:
    """Trains one network and measures its accuracy."""
    classifier.check_temperature(_TEMPERATURE.value)
    if FLAGS.recipe in generating.RECIPES:
        if _TEMPERATURE.value != 1.0:
            raise ValueError(f"--temperature is for classifiers, not for {FLAGS.recipe}")
        generating.train()
        return
    begun = loading.begin(common.workdir("train"), common.flags_of_training("temperature"))
    run = begun.open()
    trainer = loading.trainer_of(run, begun.recipe, begun.train)
    name, temperature = ("baseline", None) if _TEMPERATURE.value == 1.0 else ("teacher", _TEMPERATURE.value)
    state = trainer.plain(FLAGS.seed, _TEMPERATURE.value, name)
    common.record_accuracies(run, {name: (state.logits_fn, temperature)}, begun.test)
    common.print_accuracies(run)
    rates = trainer.rates()
    if rates is not None:
        run.append(measure="loader", seed=FLAGS.seed, temperature=temperature, network=name, **rates)
        told = {"decoded": "decoded", "read": "read from the cache", "trained": "trained on"}
        known = [f"{rate:.4g} {told[name.removesuffix('_per_second')]}" for name, rate in rates.items() if rate]
        print(f"images a second: {', '.join(known)}")


if __name__ == "__main__":
    common.run(main)
