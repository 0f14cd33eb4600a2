"""Shows what XLA:CPU gets wrong where two CPU devices share a batch: `python -m tests.wrong_on_two_devices`.

A random network of thermometer codes, whose first convolution has 48 channels, classifies the images that 40 steps of
PGD end at, in one program. Compared with one device, the image in the middle of a device's share has other logits on
jaxlib 0.10.2 and 0.12.0; with the number 1 as argument, for one device, none has.
"""

import sys

import jax
import numpy as np

import ddjax
from ddjax import attacks, models, parallel
from ddjax.defenses import thermometer

BATCH, CALLS = 100, 10


def program(logits_fn, images, labels, key_data):
    keys = jax.random.wrap_key_data(key_data)
    found = attacks.pgd(logits_fn, images, labels, keys, epsilon=1.0, num_steps=40).images
    return found, logits_fn(found)


def main() -> None:
    """Prints which images are wrong."""
    jax.config.update("jax_num_cpu_devices", int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    images = np.random.default_rng(0).random((BATCH, 32, 32, 3), np.float32)
    labels = np.zeros(BATCH, np.int32)
    keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(1), BATCH)))
    module = thermometer.Encoded(models.build("small_cifar10", 10), levels=16, channels=3)
    logits_fn = ddjax.bind(module, jax.jit(module.init)(jax.random.key(0), images[:1]))
    mesh = parallel.make_mesh("data")
    shared = jax.jit(parallel.over_examples(program, mesh))
    alone = jax.jit(lambda logits_fn, images: logits_fn(images))
    wrong = []
    for _ in range(CALLS):
        found, logits = parallel.map_batches(shared, logits_fn, images, labels, keys, batch_size=BATCH, mesh=mesh)
        expected = np.asarray(alone(logits_fn, found))
        off = np.abs(logits - expected).max(1) > 1e-3 * np.abs(expected).max()
        wrong.append(np.flatnonzero(off).tolist())
    print(f"jax {jax.__version__}, {mesh.size} devices: wrong in {sum(map(bool, wrong))} of {CALLS} calls: {wrong}")


if __name__ == "__main__":
    main()
