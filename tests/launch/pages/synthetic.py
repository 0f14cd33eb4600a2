"""Run directories as the launchers write them, with made-up numbers."""

import csv
import json
import pathlib

import numpy as np

from ddjax import metrics
from launch import pages
from launch.pages import _page
from tests.launch.pages import reading

NORMS = ("l0_pixels", "l0_values", "l1", "l2", "linf")


def save_run(path, launcher, records, flags=None, **resolved):
    """Writes a run; a launcher of None in its flags leaves its name out."""
    flags = {"launcher": launcher, "recipe": "quick", "dataset": resolved.get("dataset", "mnist")} | (flags or {})
    config = {
        "flags": {name: value for name, value in flags.items() if value is not None},
        "resolved": {"dataset": "mnist", "class_names": [str(digit) for digit in range(10)]} | resolved,
        "environment": {"device": "cpu <&>"},
    }
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    for place, record in enumerate(records):
        if record["measure"] == "attack" and "attack" in record:
            record.setdefault("file", f"images/{place}_{record['attack'].partition(':')[0]}.npz")
    (path / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def write(path):
    """Writes the page of a run, twice, since the same run gives the same bytes, and reads it."""
    written = pages.write(path)
    first = {file: file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
    pages.write(path)
    assert {file: file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()} == first
    assert pages.table(path) + "\n" == (path / "table.md").read_text()
    return reading.Page(written)


def figures(path):
    """The names of the figures that were written."""
    return {file.stem for file in (path / "figures").iterdir()}


def rows(path, name="table.csv"):
    """The rows of a CSV file."""
    with (path / name).open() as file:
        return list(csv.DictReader(file))


def run_of(records, config=None):
    """A run that is not on disk, as pages read it."""
    return _page.Run(pathlib.Path("nowhere"), config or {}, records)


def share(name, successes, n=100):
    """The fields of a rate of `successes` of `n`."""
    return metrics.rate_fields(name, successes, n)


def _rate(successes, n):
    low, high = metrics.wilson_interval(successes, n)
    return {"n": n, "successes": successes, "success": successes / n if n else 0.0} | {
        "success_low": low,
        "success_high": high,
    }


def attack(text="pgd:epsilon=0.3", targets="none", successes=90, n=100, rounded=None, l2=1.5, linf=0.3, l0=20.0):
    """A record of `launch.attack`."""
    rounded = successes if rounded is None else rounded
    record = {"measure": "attack", "attack": text, "targets": targets, **_rate(successes, n), "misclassified": 4}
    record |= {"successes_8_bits": rounded, "success_8_bits": rounded / n if n else 0.0}
    for norm, value in zip(NORMS, (l0, l0, 9.0, l2, linf), strict=True):
        for statistic, factor in (("mean", 1), ("median", 0.9), ("worst", 2)):
            record[f"{norm}_{statistic}"] = value * factor if successes else None
    record |= {"mean_steps": 40.0, "mean_gradients": 41.0, "seconds_per_example": 0.0123}
    if targets == "all":
        for case, factor in (("best", 0.5), ("average", 1), ("worst", 2)):
            record |= {f"{case}_successes": successes, f"{case}_n": n, f"{case}_success": successes / n}
            for norm, value in (("l0_pixels", l0), ("l2", l2), ("linf", linf)):
                record[f"{case}_{norm}"] = value * factor if successes else None
    return record


def certify(norm="linf", proved=92, attacked=100, violations=0, n=100):
    return {
        "measure": "certify",
        "norm": norm,
        "method": "crown",
        "n": n,
        "proved": proved,
        "mean_proved": 0.0123,
        "median_proved": 0.0111,
        "attacked": attacked,
        "mean_attacked": 0.0456 if attacked else None,
        "violations": violations,
        "seconds_per_example": 0.5,
        "file": f"images/certify_{norm}",
    }


def save_clean(path, size=20, shape=(6, 6, 1), classes=10, wrong=(3,)):
    """The attacked test images, classified rightly but for the rows `wrong`."""
    labels = np.arange(size) % classes
    predictions = labels.copy()
    predictions[list(wrong)] = (labels[list(wrong)] + 1) % classes
    images = np.random.default_rng(0).integers(0, 256, (size, *shape)).astype(np.uint8)
    (path / "images").mkdir(parents=True, exist_ok=True)
    np.savez(path / "images" / "clean.npz", images=images, labels=labels, predictions=predictions)


def save_images(path, name, targeted, success=True, failed=(1,), classes=10):
    """What an attack made of the clean images; the attempts `failed` have failed."""
    with np.load(path / "images" / "clean.npz") as clean:
        images, labels = clean["images"] / 255, clean["labels"]
    rows, extra = np.arange(len(labels)), {}
    if targeted:
        rows, targets = np.repeat(rows, classes), np.tile(np.arange(classes), len(labels))
        other = targets != labels[rows]
        rows, targets = rows[other], targets[other]
        extra = {"targets": targets}
    won = np.full(len(rows), success)
    won[list(failed)] = False
    wanted = extra.get("targets", (labels[rows] + 1) % classes)
    moved = np.clip(images[rows] + np.random.default_rng(1).normal(0, 0.1, images[rows].shape), 0, 1)
    arrays = {"images": moved.astype(np.float32), "success": won, "labels": labels[rows], "rows": rows}
    np.savez(path / "images" / f"{name}.npz", **arrays, predictions=np.where(won, wanted, labels[rows]), **extra)


def carlini(network, name, norm, success=(100, 100, 100), distances=(1.0, 2.0, 3.0), n=100, temperature=100.0):
    """A record of `launch.carlini`; None in `success` for a case that the attack does not have."""
    record = {"measure": "carlini", "network": network, "temperature": temperature if network == "student" else None}
    record |= {"attack": name, "norm": norm, "targeted": success[1] is not None, "images": 12, "n": n}
    for case, won, distance in zip(("best", "average", "worst"), success, distances, strict=True):
        missing = won is None
        record |= {
            f"{case}_success": None if missing else won / n,
            f"{case}_successes": won,
            f"{case}_n": None if missing else n,
            f"{case}_distance": distance if won else None,
        }
    return record | {"success_8_bits": 0.99, "mean_steps": 1e4, "mean_gradients": 10001.5, "seconds_per_example": 1.5}


def accuracy(network, correct=95, temperature=None):
    where = {"measure": "accuracy", "network": network, "temperature": temperature, "seed": 0}
    return {**where, "correct": correct, "n": 100, "accuracy": correct / 100}


def transfer(target, targeted, kappa, transferred, n=100, temperature=100.0):
    low, high = metrics.wilson_interval(transferred, n)
    return {
        "measure": "transfer",
        "target": target,
        "temperature": temperature if target == "distilled" else None,
        "kappa": float(kappa),
        "targeted": targeted,
        "sources": 110,
        "source_successes": n,
        "n": n,
        "transferred": transferred,
        "rate": transferred / n if n else 0.0,
        "low": low,
        "high": high,
        "mean_l2": 2.0 + kappa / 10,
    }
