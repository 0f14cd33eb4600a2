"""Attacks a trained network: `python -m launch.attack --checkpoint=DIR --attack=pgd:epsilon=0.3 --attack=ddn`.

An attack is its name, alone or with settings as `name:key=value,key=value`; `temperature=T` sends any of them through
softmax(Z / T), and with `forward=bfloat16` it sees the classifier in that precision, while success is judged in
float32. Each writes one line to `results.jsonl` and its images to `images/`. `--num_examples` correctly and wrongly
classified test images are attacked, 100 by default, spread evenly over the classes; the success rate
is over the correctly classified ones.

`--targets` says which classes are aimed at: `auto` leaves an attack untargeted where it can be and else aims at all
other classes; `all`; `random`, one other class for each image; `next`, the class after the label; `least_likely`, the
one with the smallest logit. With all targets come the best, the average and the worst case over them.

`--certify` also proves, in Linf and in L2, a radius within which each image keeps its class. The true distance lies
between this radius and the closest adversarial image that any of the attacks has found.
"""

import dataclasses
import functools
import pathlib
import re
import time
from typing import Any

import jax
import numpy as np
from absl import flags

from ddjax import attacks, certify, checkpoints, data, evaluation, metrics, parallel, runs
from ddjax.evaluation import Attempts, ConfiguredAttack, Outcome

from . import attacking, common, loading

FLAGS = flags.FLAGS
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The directory of one network's checkpoints.")
_ATTACKS = flags.DEFINE_multi_string("attack", [], "An attack, name or name:key=value,...; repeats.")
_TARGETS = flags.DEFINE_enum("targets", "auto", evaluation.TARGETS, "The classes aimed at.")
_CERTIFY = flags.DEFINE_bool("certify", False, "Also proves a lower bound of each distance.")
_CERTIFY_METHOD = flags.DEFINE_enum(
    "certify_method", "crown", certify.METHODS, "The method of proof; tighter ones are slower."
)
_CERTIFIED_NORMS = ("linf", "l2")


def main() -> None:
    """Runs the attacks."""
    if _CHECKPOINT.value is None:
        raise ValueError("--checkpoint must name the directory of a network's checkpoints")
    if not _ATTACKS.value:
        raise ValueError(f"--attack must name at least one attack; known: {', '.join(attacks.ATTACKS)}")
    parsed = {text: evaluation.parse_attack(text) for text in _ATTACKS.value}
    how = {text: evaluation.resolve_targets(_TARGETS.value, attack.attack) for text, attack in parsed.items()}
    num_examples = 100 if FLAGS.num_examples is None else FLAGS.num_examples
    spec = checkpoints.read_spec(_CHECKPOINT.value)
    dataset = FLAGS.dataset or spec.dataset
    workdir = pathlib.Path(FLAGS.workdir or f"runs/attack_{spec.recipe}")
    flags_of_run = {
        "launcher": "attack",
        "checkpoint": str(pathlib.Path(_CHECKPOINT.value).resolve()),
        "recipe": spec.recipe,
        "dataset": dataset,
        "num_examples": num_examples,
        "targets": _TARGETS.value,
        "seed": FLAGS.seed,
        "batch_size": FLAGS.batch_size,
        "matmul_precision": FLAGS.matmul_precision,
    }
    runs.check_workdir(workdir, flags_of_run)
    test = loading.load_split(dataset, "test", num_examples, spec.image_shape[0])
    data.check_fits(test, spec.image_shape, spec.num_classes, network=f"the network of {_CHECKPOINT.value}")
    state, spec = checkpoints.load_network(_CHECKPOINT.value)
    logits_fn = state.logits_fn
    for text, attack in parsed.items():
        evaluation.check_settings(attack, logits_fn, spec.image_shape, how[text] != "none")
    resolved = dataclasses.asdict(spec) | {
        "class_names": test.class_names,
        "parameters_fingerprint": common.fingerprint(*jax.tree.leaves(state.variables)),
        "test_fingerprint": common.fingerprint(test.images, test.labels),
    }
    run = runs.Run(workdir, flags_of_run, resolved)
    clean = common.classify(logits_fn, data.to_float(test.images))
    attacking.save_clean(run, test, clean)
    for text, attack in parsed.items():
        if run.find(measure="attack", attack=text) is None:
            _measure(run, text, attack, how[text], logits_fn, test, clean)
    for norm in _CERTIFIED_NORMS:
        # Once there is a proof, every attack is compared with it.
        if _CERTIFY.value or _last(run, norm) is not None:
            _certify(run, norm, logits_fn, test, clean)
    for record in run.records:
        if record["measure"] == "attack" or record == _last(run, record["norm"]):
            print(_in_words(record))
    if _CERTIFY.value:
        _print_brackets(run)
    common.write_report(run, table=False)


def _in_words(record: dict[str, Any]) -> str:
    if record["measure"] == "certify":
        attacked = "" if record["mean_attacked"] is None else f", attacked at {record['mean_attacked']:.4f} in the mean"
        return (
            f"certify {record['norm']}: {record['proved']} of {record['n']} have a proved distance, "
            f"{record['mean_proved']:.4f} in the mean{attacked}; violations: {record['violations']}"
        )
    norms = ", ".join(
        f"{norm} {record[f'{norm}_mean']:.4g}" for norm in ("l0_pixels", "l2", "linf") if record[f"{norm}_mean"]
    )
    low = ""
    if record.get("forward", "float32") != "float32":
        low = f"; in {record['forward']} it believed {record['claimed']:.4f}"
    return (
        f"{record['attack']}: success {record['success']:.4f} [{record['success_low']:.4f}, "
        f"{record['success_high']:.4f}] of {record['n']}, after 8-bit rounding {record['success_8_bits']:.4f}"
        f"{'; mean ' + norms if norms else ''}{low}{_zero_gradients(record)}"
    )


def _zero_gradients(record: dict[str, Any]) -> str:
    """The share of exactly zero gradients, with a warning where it makes the rate doubtful; empty for none."""
    share = record.get("zero_gradient_share")
    if share is None:
        return ""
    told = f"; zero gradients {share:.1%}"
    if share > evaluation.ZERO_SHARE:
        told += " (warning: masked gradients; the rate says little, try temperature=T or loss=margin)"
    return told


def _file_name(name: str) -> str:
    """A name without what a file name cannot hold."""
    return re.sub(r"[^A-Za-z0-9_.=+-]+", "_", name)


def _measure(
    run: runs.Run,
    text: str,
    attack: ConfiguredAttack,
    how: str,
    logits_fn: Any,
    test: data.Dataset,
    clean: np.ndarray,
) -> None:
    tried = attacking.attempts(how, test, clean)
    outcome = attacking.run_attack(attack, logits_fn, tried, text)
    correct = metrics.correct(clean, test.labels)[tried.rows]
    rate = metrics.success_rate(outcome.success, correct)
    low, high = metrics.wilson_interval(rate.successes, rate.n)
    rounded = metrics.success_rate(outcome.success_8_bits, correct)
    counted = outcome.success & correct
    summary = {}
    for norm, values in outcome.distances._asdict().items():
        of_successes = values[counted]
        for statistic, function in (("mean", np.mean), ("median", np.median), ("worst", np.max)):
            summary[f"{norm}_{statistic}"] = float(function(of_successes)) if len(of_successes) else None
    if how == "all":
        summary |= _cases(outcome, tried)
    number = len(run.records)
    file = attacking.save_outcome(run, f"{number}_{_file_name(attack.attack.name)}", tried, outcome)
    run.append(
        measure="attack",
        attack=text,
        targets=how,
        n=rate.n,
        successes=rate.successes,
        success=rate.value,
        success_low=low,
        success_high=high,
        forward=attack.forward,
        claimed=metrics.success_rate(outcome.claimed, correct).value,
        misclassified=int((~correct).sum()),
        successes_8_bits=rounded.successes,
        success_8_bits=rounded.value,
        **summary,
        **evaluation.costs(outcome),
        file=file,
    )


def _cases(outcome: Outcome, tried: Attempts) -> dict[str, Any]:
    """The best, average and worst case over the targets of each image, in the norms that attacks minimize."""
    fields: dict[str, Any] = {}
    for norm in ("l0_pixels", "l2", "linf"):
        of_norm = metrics.cases(getattr(outcome.distances, norm), outcome.success, tried.rows)
        for name, case in of_norm.items():
            fields |= {
                f"{name}_successes": case.rate.successes,
                f"{name}_n": case.rate.n,
                f"{name}_success": case.rate.value,
                f"{name}_{norm}": case.distance,
            }
    return fields


def _certify(run: runs.Run, norm: str, logits_fn: Any, test: data.Dataset, clean: np.ndarray) -> None:
    """Proves a radius for each image, once, and compares it with all attacks of the run so far."""
    name, before = f"images/certify_{norm}", _last(run, norm)
    if before is not None and _CERTIFY.value and before["method"] != _CERTIFY_METHOD.value:
        before = None
    if before is None:
        proved, seconds = _prove(norm, logits_fn, test)
    else:
        # Only what the attacks added since have found is new.
        proved, seconds = run.load_arrays(name)["proved"], before["seconds_per_example"]
    attacked = _closest(run, norm, test)
    correct = metrics.correct(clean, test.labels)
    # A misclassified image is decided otherwise itself.
    attacked[~correct] = 0.0
    run.save_arrays(name, proved=proved, attacked=attacked, labels=test.labels)
    found = np.isfinite(attacked) & correct
    record = {
        "measure": "certify",
        "norm": norm,
        "method": _CERTIFY_METHOD.value if before is None else before["method"],
        "n": int(correct.sum()),
        "proved": int((proved[correct] > 0).sum()),
        "mean_proved": float(proved[correct].mean()) if correct.any() else 0.0,
        "median_proved": float(np.median(proved[correct])) if correct.any() else 0.0,
        "attacked": int(found.sum()),
        "mean_attacked": float(attacked[found].mean()) if found.any() else None,
        "violations": int((attacked[correct] < proved[correct]).sum()),
        "seconds_per_example": seconds,
        "file": f"{name}.npz",
    }
    if record != before:
        run.append(**record)


def _last(run: runs.Run, norm: str) -> dict[str, Any] | None:
    """The newest record of a proof; None where there is none, or its file is gone."""
    found = [r for r in run.records if r["measure"] == "certify" and r["norm"] == norm]
    is_there = parallel.on_primary(lambda: bool(found) and (run.workdir / found[-1]["file"]).exists())
    return found[-1] if is_there else None


def _prove(norm: str, logits_fn: Any, test: data.Dataset) -> tuple[np.ndarray, float]:
    """The radii, and the seconds for an image."""
    prove = functools.partial(certify.largest_radius, norm=norm, method=_CERTIFY_METHOD.value)
    started = time.monotonic()
    # One image already keeps the processor busy, and so the bar moves.
    columns = (data.to_float(test.images), test.labels)
    proved = common.evaluate(prove, logits_fn, *columns, batch_size=1, description=f"certify {norm}")
    return proved, (time.monotonic() - started) / len(test)


def _closest(run: runs.Run, norm: str, test: data.Dataset) -> np.ndarray:
    """The distance of the closest adversarial image of each test image that any attack of the run found."""
    closest = np.full(len(test), np.inf)
    clean = data.to_float(test.images)
    for record in run.records:
        if record["measure"] != "attack":
            continue
        arrays = run.load_arrays(record["file"].removesuffix(".npz"))
        rows, success, images = arrays["rows"], arrays["success"], arrays["images"]
        moved = getattr(metrics.distances(jax.numpy.asarray(clean[rows]), jax.numpy.asarray(images)), norm)
        np.minimum.at(closest, rows[success], np.asarray(moved)[success])
    return closest


def _print_brackets(run: runs.Run) -> None:
    """Prints for each image what was proved and what was found."""
    for norm in _CERTIFIED_NORMS:
        arrays = run.load_arrays(f"images/certify_{norm}")
        pairs = zip(arrays["labels"], arrays["proved"], arrays["attacked"], strict=True)
        for row, (label, proved, attacked) in enumerate(pairs):
            print(f"{norm} image {row} of class {label}: [{proved:.4f}, {attacked:.4f}]")


if __name__ == "__main__":
    common.run(main)
