"""The check for masked gradients as launchers make it; see `ddjax.masking`."""

import functools
from typing import Any

import jax
import numpy as np

from ddjax import data, masking, runs

from . import common

# The check draws from other keys than the attacks do.
_PURPOSE = 0x3A5C
# Draws of a random classifier that is the judge: enough that few images are misclassified by chance alone.
DRAWS = 10


@functools.cache
def _program(num_steps: int, num_random: int) -> Any:
    """The probe of a batch, as one object for each program."""

    def probe(shared: Any, images: jax.Array, labels: jax.Array, key_data: jax.Array) -> masking.Probe:
        logits_fn, judge, substitute, epsilon = shared
        return masking.probe(
            logits_fn,
            images,
            labels,
            jax.random.wrap_key_data(key_data),
            judge=judge,
            substitute=substitute,
            epsilon=epsilon,
            num_steps=num_steps,
            num_random=num_random,
        )

    return probe


def measure(
    run: runs.Run,
    where: dict[str, Any],
    logits_fn: Any,
    judge: Any,
    test: data.Dataset,
    *,
    substitute: Any | None,
    epsilon: float,
    num_steps: int = 40,
    num_random: int = 200,
) -> None:
    """Looks for the behaviors of masked gradients, and adds a record for each light and one for the worst.

    Args:
      run: that is added to.
      where: the fields by which the classifier is known.
      logits_fn: the classifier as a defense-unaware attacker sees it, with its own gradients.
      judge: the classifier as it is deployed; a random one is judged by `DRAWS` draws.
      test: the images.
      substitute: another network, whose adversarial images are transferred to the classifier; None for none.
      epsilon: the radius in Linf.
      num_steps: of the attacks.
      num_random: samples of the random search.
    """
    found = common.evaluate(
        _program(num_steps, num_random),
        (logits_fn, judge, substitute, np.float32(epsilon)),
        data.to_float(test.images),
        test.labels,
        common.key_data(test.indices, _PURPOSE),
        description=f"{' '.join(where.values())}: masking",
    )
    lights = masking.lights(found)
    for light in lights:
        if run.find(measure="light", **where, name=light.name) is None:
            run.append(measure="light", **where, **light._asdict())
    # This record comes last: a run that was stopped before it measures again.
    n = int(np.asarray(found.correct).sum())
    run.append(measure="masking", **where, color=masking.overall(lights), n=n, epsilon=epsilon)
