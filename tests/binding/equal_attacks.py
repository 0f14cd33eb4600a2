"""Attacks one network, written in every framework with the same weights, and compares what is found.

By hand, `KERAS_BACKEND=jax python -m tests.binding.equal_attacks`: every attack on every framework that is installed,
in float64 and in float32, and how many programs were compiled for two sets of weights. The suite runs a few.
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax.attacks import ATTACKS
from tests.binding import frameworks

# Equal in float64 to this; in float32 this share of successes, and medians of distances to this.
INPUTS, SUCCESS, MEDIAN = 1e-6, 0.99, 0.01


def run(attack, framework, dtype, seeds=(0, 1), count=64):
    """The results on two sets of weights, and the number of programs."""
    traces = []

    @jax.jit
    def program(logits_fn, inputs, labels, targets, key):
        traces.append(1)
        targets = targets if attack.targets == "required" else None
        return attack.function(logits_fn, inputs, labels, targets=targets, key=key, **attack.example)

    found = []
    for seed in seeds:
        inputs = np.random.default_rng(seed).random((count, *frameworks.SHAPE)).astype(dtype)
        logits_fn = frameworks.NETWORKS[framework](frameworks.make_weights(seed, dtype))
        labels = np.argmax(logits_fn(jnp.asarray(inputs)), axis=1).astype(np.int32)
        result = program(logits_fn, inputs, labels, (labels + 1) % frameworks.CLASSES, jax.random.key(seed))
        found.append((inputs, jax.tree.map(np.asarray, result)))
    return found, len(traces)


def differences(one, other):
    """Of two results: the largest difference of inputs, the share of equal successes, the one of median distances."""
    (clean, first), (_, second) = one, other
    lengths = []
    for result in (first, second):
        moved = np.sqrt(np.sum((result.inputs - clean) ** 2, axis=(1, 2, 3)))[result.success]
        lengths.append(np.median(moved) if len(moved) else 0.0)
    median = abs(lengths[0] - lengths[1]) / max(*lengths, 1e-9)
    return np.abs(first.inputs - second.inputs).max(), np.mean(first.success == second.success), median


def compare(attack, framework, dtype, reference="linen", **settings):
    """The differences from the reference, the worst of all weights, and the number of programs."""
    known, _ = run(attack, reference, dtype, **settings)
    found, programs = run(attack, framework, dtype, **settings)
    largest, equal, median = zip(*map(differences, known, found), strict=True)
    return max(largest), min(equal), max(median), programs


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--attack", action="append", help="Default: all.")
    parser.add_argument("--framework", action="append", help="Default: all.")
    flags = parser.parse_args()
    wrong = 0
    for dtype in (np.float64, np.float32):
        with jax.enable_x64(dtype is np.float64):
            for name in flags.attack or ATTACKS:
                for framework in flags.framework or [each for each in frameworks.NETWORKS if each != "linen"]:
                    try:
                        largest, equal, median, programs = compare(ATTACKS[name], framework, dtype)
                    except pytest.skip.Exception as error:
                        print(f"{framework}: {error}")
                        continue
                    holds = largest <= INPUTS if dtype is np.float64 else equal >= SUCCESS and median <= MEDIAN
                    holds = holds and programs == 1
                    wrong += not holds
                    print(
                        f"{np.dtype(dtype).name} {name} {framework}: inputs {largest:.1e}, successes {equal:.3f}, "
                        f"median distance {median:.1e}, programs {programs}{'' if holds else '  WRONG'}",
                        flush=True,
                    )
    print(f"{wrong} wrong")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
