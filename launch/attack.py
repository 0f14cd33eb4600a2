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
import time
from typing import Any

import jax
import numpy as np
from absl import flags

from ddjax import certify, data, evaluation, metrics, runs
from ddjax.evaluation import ConfiguredAttack

from . import attacking, common, exporting, loading, networks

FLAGS = flags.FLAGS
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The directory of one network's checkpoints.")
_ATTACKS = flags.DEFINE_multi_string("attack", [], "An attack, name or name:key=value,...; repeats.")
_TARGETS = flags.DEFINE_enum("targets", "auto", evaluation.TARGETS, "The classes aimed at.")
_CERTIFY = flags.DEFINE_bool("certify", False, "Also proves a lower bound of each distance.")
_CERTIFY_METHOD = flags.DEFINE_enum("certify_method", "crown", certify.METHODS, "Tighter methods are slower.")
_CERTIFIED_NORMS = ("linf", "l2")


def main() -> None:
    """Runs the attacks."""
    checkpoint = networks.chosen(_CHECKPOINT.value)
    attacking.check_named(checkpoint or networks.is_own(), _ATTACKS.value)
    parsed = {text: evaluation.parse_attack(text) for text in _ATTACKS.value}
    how = {text: evaluation.resolve_targets(_TARGETS.value, attack.attack) for text, attack in parsed.items()}
    num_examples = 100 if FLAGS.num_examples is None else FLAGS.num_examples
    spec = networks.read_spec(checkpoint)
    dataset, workdir = networks.dataset_for(spec), common.workdir("attack", networks.run_name(spec))
    own = {"targets": _TARGETS.value} | networks.flags_of_run()
    if checkpoint is not None:
        own["checkpoint"] = str(pathlib.Path(checkpoint).resolve())
    flags_of_run = attacking.flags_of_run("attack", spec.recipe, dataset, num_examples, **own)
    runs.check_workdir(workdir, flags_of_run)
    test = loading.load_split(
        dataset, "test", num_examples, networks.size_for(spec), at_most=FLAGS.num_examples is None
    )
    logits_fn, spec, parameters = networks.load(checkpoint, test)
    exporting.check_shape(spec.image_shape)
    parsed = {text: attack.limited(**test.limits) for text, attack in parsed.items()}
    for text, attack in parsed.items():
        evaluation.check_settings(attack, logits_fn, spec.image_shape, how[text] != "none")
    resolved = dataclasses.asdict(spec) | {"parameters_fingerprint": parameters} | attacking.describe(test)
    run = runs.Run(workdir, flags_of_run, resolved)
    clean = common.classify(logits_fn, data.to_float(test.images))
    attacking.save_clean(run, test, clean)
    for text, attack in parsed.items():
        if run.find(measure="attack", attack=text) is None:
            _measure(run, attack, how[text], logits_fn, test, clean)
    for norm in _CERTIFIED_NORMS:
        # Once there is a proof, every attack is compared with it.
        if _CERTIFY.value or _last(run, norm) is not None:
            _certify(run, norm, logits_fn, test, clean)
    rate = metrics.accuracy(clean, test.labels)
    print(f"clean accuracy: {rate.value:.4f}, {rate.successes} of {rate.n}")
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
    told = (
        f"{record['attack']}: success {record['success']:.4f} [{record['success_low']:.4f}, "
        f"{record['success_high']:.4f}] of {record['n']}"
    )
    if "success_8_bits" in record:
        told += f", after 8-bit rounding {record['success_8_bits']:.4f}"
    changes = "l0_pixels" if "success_8_bits" in record else "l0_values"
    means = {norm: record[f"{norm}_mean"] for norm in (changes, "l2", "linf")}
    norms = ", ".join(f"{norm} {mean:.4g}" for norm, mean in means.items() if mean)
    if norms:
        told += f"; mean {norms}"
    if record.get("forward", "float32") != "float32":
        told += f"; in {record['forward']} it believed {record['claimed']:.4f}"
    share = record.get("zero_gradient_share")
    if share is not None:
        told += f"; zero gradients {share:.1%}"
    if share is not None and share > evaluation.ZERO_SHARE:
        told += " (warning: masked gradients; the rate says little, try temperature=T or loss=margin)"
    return told


def _measure(
    run: runs.Run, attack: ConfiguredAttack, how: str, logits_fn: Any, test: data.Dataset, clean: np.ndarray
) -> None:
    tried = attacking.attempts(how, test, clean)
    outcome = attacking.run_attack(attack, logits_fn, tried, attack.text)
    correct = metrics.correct(clean, test.labels)[tried.rows]
    rate = metrics.success_rate(outcome.success, correct)
    low, high = metrics.wilson_interval(*rate)
    summary = {}
    for norm, values in outcome.distances._asdict().items():
        of_successes = values[outcome.success & correct]
        for statistic, function in (("mean", np.mean), ("median", np.median), ("worst", np.max)):
            summary[f"{norm}_{statistic}"] = float(function(of_successes)) if len(of_successes) else None
    if how == "all":
        # In the norms that attacks minimize.
        summary |= attacking.case_fields(outcome, tried, {norm: norm for norm in (common.counted(test), "l2", "linf")})
    name = common.file_name(str(len(run.records)), attack.attack.name)
    file = attacking.save_outcome(run, name, tried, outcome)
    exporting.save(run, name, tried, outcome.inputs, outcome.success)
    fields = {"n": rate.n, "successes": rate.successes, "success": rate.value, "success_low": low, "success_high": high}
    fields |= {"forward": attack.forward, "claimed": metrics.success_rate(outcome.claimed, correct).value}
    fields |= {"misclassified": int((~correct).sum())}
    if outcome.success_8_bits is not None:
        rounded = metrics.success_rate(outcome.success_8_bits, correct)
        fields |= {"successes_8_bits": rounded.successes, "success_8_bits": rounded.value}
    fields |= summary | evaluation.costs(outcome)
    run.append(measure="attack", attack=attack.text, targets=how, **fields, file=file)


def _certify(run: runs.Run, norm: str, logits_fn: Any, test: data.Dataset, clean: np.ndarray) -> None:
    """Proves a radius for each image, once, and compares it with all attacks of the run so far."""
    name, method, before = f"images/certify_{norm}", _CERTIFY_METHOD.value, _last(run, norm)
    if before is not None and not (_CERTIFY.value and before["method"] != method):
        # Only what the attacks added since have found is new.
        proved, seconds, method = run.load_arrays(name)["proved"], before["seconds_per_example"], before["method"]
    else:
        # The mask has no part in it: what holds for more changes holds for fewer.
        bounds = {} if test.bounds is None else {"bounds": test.bounds}
        prove = functools.partial(certify.largest_radius, norm=norm, method=method, **bounds)
        started = time.monotonic()
        # One image already keeps the processor busy, and so the bar moves.
        settings = {"batch_size": 1, "description": f"certify {norm}"}
        proved = common.evaluate(prove, logits_fn, data.to_float(test.images), test.labels, **settings)
        seconds = (time.monotonic() - started) / len(test)
    attacked = _closest(run, norm, test)
    correct = metrics.correct(clean, test.labels)
    # A misclassified image is decided otherwise itself.
    attacked[~correct] = 0.0
    run.save_arrays(name, proved=proved, attacked=attacked, labels=test.labels)
    right, found = proved[correct], attacked[np.isfinite(attacked) & correct]
    record = {"measure": "certify", "norm": norm, "method": method, "n": len(right), "proved": int((right > 0).sum())}
    record["mean_proved"] = float(right.mean()) if len(right) else 0.0
    record["median_proved"] = float(np.median(right)) if len(right) else 0.0
    record |= {"attacked": len(found), "mean_attacked": float(found.mean()) if len(found) else None}
    record["violations"] = int((attacked[correct] < right).sum())
    record |= {"seconds_per_example": seconds, "file": f"{name}.npz"}
    if record != before:
        run.append(**record)


def _last(run: runs.Run, norm: str) -> dict[str, Any] | None:
    """The newest record of a proof, or None."""
    found = [record for record in run.records if record["measure"] == "certify" and record["norm"] == norm]
    return found[-1] if found else None


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
