"""How `launch.train` trains generative models."""

import contextlib
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ddjax import checkpoints, data, generative, layers, runs, training
from ddjax.defenses import defense_gan
from ddjax.generative import gan, pixelcnn
from ddjax.state import TrainState

from . import common, loading
from .recipes.generative import RECIPES, GenerativeRecipe, create_state, epoch_fn

FLAGS = flags.FLAGS
# Keys of samples and of searches for codes are others than those of the training.
_SAMPLES, _SEARCHES = 0x5A3B, 0x5EA4
_NUM_SAMPLES = 32
# Samples are kept of so many epochs, the last one among them.
_NUM_LOOKS = 6
# Of the held-out images, so many are looked for among a generator's, by so many steps and starts.
_NUM_RECONSTRUCTED = 50
_SEARCHED = ((25, 1), (25, 4), (100, 1), (100, 4), (200, 10))


def _bits(density: Any, images: jax.Array) -> jax.Array:
    return pixelcnn.bits_per_dimension(density, jnp.round(255 * data.to_float(images)))


def _sample(model: Any, key_data: jax.Array, *, image_shape: tuple[int, int, int], latent: int) -> jax.Array:
    keys = jax.random.wrap_key_data(key_data)
    if latent:
        return model(jax.vmap(lambda key: gan.draw_codes(key, 1, latent)[0])(keys))
    return pixelcnn.sample(model, keys, image_shape) / 255


def _search(model: Any, images: jax.Array, key_data: jax.Array, **settings: int) -> tuple[jax.Array, jax.Array]:
    keys = jax.random.wrap_key_data(key_data)
    codes, errors = defense_gan.invert(data.to_float(images), keys, model, **settings)
    return model(codes), errors


def train() -> None:
    """Trains the model of a recipe, and tells after each epoch how it does on held-out images."""
    recipe = common.replaced_by_flags(RECIPES[FLAGS.recipe])
    directory = common.workdir("train")
    flags_of_run = {"launcher": "generate"} | common.flags_of_training()
    runs.check_workdir(directory, flags_of_run)
    # What a recipe leaves out, it does of its own data set.
    skip = recipe.skip if recipe.dataset == RECIPES[FLAGS.recipe].dataset else 0
    train = loading.load_split(recipe.dataset, "train", recipe.num_train, None, skip)
    test = loading.load_split(recipe.dataset, "test", recipe.num_test, None)
    image_shape = data.check_images(train, recipe.name)
    if train.on_disk:
        raise ValueError("a generative model needs the images in memory: give --num_train")
    training.steps_per_epoch(len(train), recipe.batch_size * recipe.training.get("critic_steps", 1))
    resolved = {name: getattr(recipe, name) for name in ("dataset", "model", "batch_size", "learning_rate", "epochs")}
    resolved |= {"network": dict(recipe.network), "training": dict(recipe.training)}
    resolved |= {"image_shape": list(train.image_shape), "num_train": len(train), "num_test": len(test)}
    resolved["train_fingerprint"] = common.fingerprint(train.images)
    resolved["test_fingerprint"] = common.fingerprint(test.images)
    run = runs.Run(directory, flags_of_run, resolved)
    state = create_state(recipe, image_shape, jax.random.key(FLAGS.seed))
    how = {name: getattr(recipe, name) for name in ("dataset", "role", "epochs", "batch_size")}
    how |= {"recipe": recipe.name, "seed": FLAGS.seed, "temperature": 1.0, "num_train": len(train)}
    how |= {"image_shape": train.image_shape, "num_classes": train.num_classes}
    spec = checkpoints.NetworkSpec.of(state.network, **how)
    path = run.workdir / "checkpoints" / f"seed{FLAGS.seed}_none" / recipe.role
    with contextlib.closing(checkpoints.Checkpoints(path, spec)) as store:
        state = _fit(run, recipe, store, state, train, test)
    _look_back(run, state, test)
    common.write_report(run, table=False)
    last = run.find(measure="epoch", epoch=recipe.epochs) or {}
    told = ", ".join(f"{name} {value:.4f}" for name, value in last.items() if isinstance(value, float))
    print(f"{path}: after {recipe.epochs} epochs {told}")


def _fit(
    run: runs.Run,
    recipe: GenerativeRecipe,
    store: checkpoints.Checkpoints,
    state: TrainState,
    train: data.Dataset,
    test: data.Dataset,
) -> TrainState:
    state, done = store.restore(state)
    images = jnp.asarray(train.images)
    # A function of its own, whose arguments are donated.
    compiled_epoch = layers.jit(lambda state, images: epoch_fn(recipe)(state, images), donate_argnums=0)
    image_shape = data.check_images(test, recipe.name)
    sample = functools.partial(_sample, image_shape=image_shape, latent=generative.latent_of(state))
    looks = {max(1, round(part * recipe.epochs / _NUM_LOOKS)) for part in range(1, _NUM_LOOKS + 1)}

    def one_epoch(state: TrainState, _: np.ndarray) -> tuple[TrainState, dict[str, float]]:
        begun = time.monotonic()
        state, told = compiled_epoch(state, images)
        told = {name: float(value) for name, value in told.items()}
        return state, told | {"seconds": time.monotonic() - begun}

    def measure(state: TrainState, epoch: int, told: dict[str, Any]) -> dict[str, Any]:
        known = {name: float(value) for name, value in told.items()}
        if run.find(measure="epoch", epoch=epoch) is None:
            if recipe.model == "pixelcnn":
                bits = common.evaluate(_bits, generative.model_fn(state), test.images)
                known["held_out_bits_per_dimension"] = float(np.mean(bits))
            if epoch in looks:
                # By the same keys at all times.
                keys = common.key_data(np.arange(_NUM_SAMPLES), _SAMPLES)
                run.save_arrays(
                    f"samples/epoch{epoch}", images=common.evaluate(sample, generative.model_fn(state), keys)
                )
            run.append(measure="epoch", epoch=epoch, **known)
        return known

    return training.train_epochs(
        one_epoch,
        state,
        names=[recipe.name],
        done=[done],
        epochs=recipe.epochs,
        stores=[store],
        after_epoch=measure,
        checkpoint_seconds=FLAGS.checkpoint_seconds,
        progress=common.progress,
    )


def _look_back(run: runs.Run, state: TrainState, test: data.Dataset) -> None:
    """What a generator makes of held-out images, by how much its search for codes may cost."""
    latent = generative.latent_of(state)
    if not latent:
        return
    shown = data.rows_of(test, slice(_NUM_RECONSTRUCTED))
    keys = common.key_data(shown.indices, _SEARCHES)
    for num_steps, restarts in _SEARCHED:
        settings = {"num_steps": num_steps, "restarts": restarts}
        if run.find(measure="reconstruction", **settings) is None:
            search = functools.partial(_search, latent=latent, **settings)
            made, errors = common.evaluate(search, generative.model_fn(state), shown.images, keys)
            name = f"reconstructions/steps{num_steps}_starts{restarts}"
            run.save_arrays(name, images=made, originals=shown.images)
            told = {"mean_error": float(np.mean(errors)), "median_error": float(np.median(errors)), "n": len(errors)}
            run.append(measure="reconstruction", **settings, **told)
