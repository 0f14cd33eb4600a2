"""A network behind a defense, before attackers: a row of `launch.evaluate` and of `launch.obfuscated`."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ddjax import data, defenses, evaluation, masking, runs

from . import attacking, common, defending

# The check for masked gradients draws from other keys than the attacks do.
_MASKING = 0x3A5C
# Draws of a random classifier that is the judge of that check: enough that few images are misclassified by chance
# alone.
_DRAWS = 10


@dataclasses.dataclass(eq=False)
class Row:
    """A network behind a defense. It is made before a run is opened, so that what does not fit is refused first.

    Attributes:
      where: the fields that name the row in the results.
      network: the network.
      defense: what it takes beside the network is there.
      test: the images that are attacked.
      held_out: clean images, for the detector.
      run: gets the measurements, each of which is skipped when it is on disk. To be set before the first of them.
    """

    where: dict[str, Any]
    network: attacking.Network
    defense: defenses.Defense
    test: data.Dataset
    held_out: data.Dataset
    run: runs.Run = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.defense.check_fits(self.network.logits_fn, self.network.spec.image_shape)

    def find(self, measure: str, **fields: Any) -> dict[str, Any] | None:
        """The row's first record with these fields, or None."""
        return self.run.find(measure=measure, **self.where, **fields)

    def append(self, measure: str, **fields: Any) -> None:
        """Adds a record of the row."""
        self.run.append(measure=measure, **self.where, **fields)

    @functools.cached_property
    def deployed(self) -> Any:
        """The classifier as it is deployed, by one draw."""
        return defending.deployed(self.defense, self.network.logits_fn)

    @functools.cached_property
    def naive(self) -> Any:
        """The classifier as a defense-unaware attacker sees it."""
        return defending.naive(self.defense, self.network.logits_fn)

    @functools.cached_property
    def detector(self) -> evaluation.Detector | None:
        """The detector beside the network."""
        images, labels = data.to_float(self.held_out.images), self.held_out.labels
        return defending.detector(self.defense, self.network.logits_fn, images, labels)

    @functools.cached_property
    def judge(self) -> evaluation.MatrixRow:
        """What judges the images that are attacked."""
        return self.judge_of(self.test)

    def judge_of(self, test: data.Dataset) -> evaluation.MatrixRow:
        """What judges images."""
        return evaluation.MatrixRow(
            self.deployed,
            data.to_float(test.images),
            test.labels,
            test.indices,
            key=common.key(attacking.JUDGING),
            evaluate=common.evaluator(),
            detector=self.detector,
        )

    def measure_worst(self, aware: bool, attacks: Any, files: Sequence[str]) -> None:
        """The worst case of each image over attacks, from the files that say which images they broke.

        A defense-aware attacker can also attack as if the defense were not there: `files` has both kinds of images.
        """
        if self.find("worst", aware=aware, attacks=attacks) is None:
            broken = [self.run.load_arrays(file.removesuffix(".npz"))["broken"] for file in files]
            self.append("worst", aware=aware, attacks=attacks, **evaluation.worst_case(broken))

    def measure_masking(self, test: data.Dataset, substitute: Any, epsilon: float, **steps: int) -> None:
        """Looks for the signs of masked gradients, and adds a record for each light and one for the worst.

        Args:
          test: the images.
          substitute: another network, whose adversarial images are transferred to the classifier.
          epsilon: the radius in Linf.
          **steps: `num_steps` of the attacks, `num_random` samples of the random search.
        """
        judge = defending.deployed(self.defense, self.network.logits_fn, _DRAWS)
        found = common.evaluate(
            _probe(**steps),
            (self.naive, {"judge": judge, "substitute": substitute, "epsilon": np.float32(epsilon), **test.limits}),
            data.to_float(test.images),
            test.labels,
            common.key_data(test.indices, _MASKING),
            description=f"{' '.join(self.where.values())}: masking",
        )
        lights = masking.lights(found)
        for light in lights:
            if self.find("light", name=light.name) is None:
                self.append("light", **light._asdict())
        # This record comes last: a run that was stopped before it measures again.
        n = int(np.asarray(found.correct).sum())
        self.append("masking", color=masking.overall(lights), n=n, epsilon=epsilon)


@functools.cache
def _probe(num_steps: int = 40, num_random: int = 200) -> Any:
    """The probe of a batch, as one object for each program."""

    def probe(shared: Any, images: jax.Array, labels: jax.Array, key_data: jax.Array) -> masking.Probe:
        logits_fn, others = shared
        keys = jax.random.wrap_key_data(key_data)
        return masking.probe(logits_fn, images, labels, keys, **others, num_steps=num_steps, num_random=num_random)

    return probe
