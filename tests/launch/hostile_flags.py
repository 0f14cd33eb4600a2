"""Starts launchers with random sets of nasty flags: each must end in a sentence and an exit status, or work.

By hand, `python -m tests.launch.hostile_flags --count=500 --seed=0`; `--only=N` repeats one set. The suite runs a few.
"""

import argparse
import pathlib
import random
import re
import sys
import tempfile

from tests.launch import processes

# Seconds for one launcher, which takes two or three.
TIMEOUT = 120
WHOLE = ("-1", "0", "1", "2", "3", "1234567890123456789012345")
NUMBERS = ("nan", "-inf", "1e309", "-1", "0", "1", "2", "3", "0.5", "-1e-300", "1e-300", "8/255", "1/0", "0x10", "1_0")
NUMBERS += ("1234567890123456789012345", "-1234567890123456789012345", "1,1", "0,-1", "nan,1", ",,1")
SETTINGS = (
    "a:b=c",
    ":",
    "pgd",
    "pgd:epsilon=-1",
    "pgd:epsilon=nan",
    "pgd:epsilon=8/255",
    "pgd:epsilon=",
    "pgd:epsilon",
)
SETTINGS += ("pgd:num_steps=0", "pgd:num_steps=1234567890123456789012345", "pgd:norm=l3", "fgsm:epsilon=1,epsilon=1")
SETTINGS += ("jsma:temperature=20", "ddn:levels=-5", "ddn:num_steps=2,levels=1234567890123456789012345", "os:system")
SETTINGS += ("no.such.module:attack:x=1", "deepfool:num_candidates=99", "jsma:theta=0", "pgd:epsilon=1e300,num_steps=2")
SETTINGS += ("jpeg:quality=1000", "bit_depth:bits=0", "squeezing:squeezers=", "squeezing:threshold=nan", "squeezing")
SETTINGS += ("median:width=99", "median:width=-1", "total_variation:keep=2", "resize_and_pad:largest=1", "jpeg")
SETTINGS += ("thermometer:levels=1", "pixel_defend:model=/dev/null", "defense_gan", "quilting:num_patches=0", "none")
SETTINGS += ("crop_ensemble:size=1000", "activation_pruning:share=nan", "non_local_means:search=4", "resample:factor=0")
PATHS = ("/dev/null", "/dev/zero", "/dev/full", "/proc/self/mem", "/dev/null/x", "no/such/directory", "file.txt")
PATHS += ("folder:", "folder:/dev/zero", "folder:no/such/directory", "folder:file.txt", "folder:trained", "trained")
PATHS += ("gs://bucket/x", "~nobody_of_this_name/x", "a\u0001b", "../../dev/null", "\u00e4\u6f22", "\udcff", "x" * 5000)
OTHERS = ("", " ", "true", "None", "%s{0}", "=", ",", "mnist", "digits", "pixelcnn_mnist", "largest", "0/2", "a=b,a=c")
ALL = NUMBERS + SETTINGS + PATHS + OTHERS
# Flags of one kind, by name; all others take numbers or words.
SETTINGS_OF = ("attack", "defense")
KINDS = dict.fromkeys(SETTINGS_OF, SETTINGS)
KINDS |= dict.fromkeys(
    ("workdir", "checkpoint", "cache_dir", "data_dir", "dataset", "readme", "runs", "density"), PATHS
)
# A traceback is what --traceback asks for; several processes wait for one another.
EXCLUDED = ("traceback", "distributed")


def prepare(start, directory: pathlib.Path) -> dict[str, list[str]]:
    """Trains a small network and returns, for each launcher, flags with which it works and ends soon."""
    (directory / "file.txt").write_text("text")
    small = ["--num_train=100", "--num_test=60", "--epochs=1"]
    trained = directory / "trained"
    process = start("distill", *small, "--temperature=5", f"--workdir={trained}", cwd=directory)
    assert process.wait() == 0, process.outputs()
    checkpoint = f"--checkpoint={trained}/checkpoints/seed0_T5/student"
    few = [*small, "--num_examples=10"]
    return {
        "train": small,
        "distill": small,
        "sweep": [*few, "--temperatures=5"],
        "attack": [checkpoint, "--attack=fgsm", "--num_examples=10", "--num_test=60"],
        "evaluate": [checkpoint, "--defense=bit_depth", "--attack=fgsm", *few, "--num_calibration=20", "--samples=2"],
        "transfer": [*few, "--kappas=0", "--search_steps=1", "--num_steps=3"],
        "carlini": [*few, "--quick", "--num_steps=3"],
        "obfuscated": ["--quick", "--num_examples=2", "--num_clean=10", "--num_steps=2"],
        "benchmark": [*small, "--work=pgd", "--batches=1", "--repetitions=1", "--quick"],
        "report": [f"--workdir={trained}"],
    }


def flag_names(start, launcher: str) -> list[str]:
    """The flags of a launcher, as its help lists them."""
    process = start(launcher, "--help")
    assert process.wait() == 0, process.outputs()
    names = re.findall(r"^  --(\w+)(?=:)", process.outputs()[0], re.MULTILINE)
    return [name for name in names if name not in EXCLUDED]


def failure(status: int, stderr: str) -> str | None:
    """What is wrong with how a launcher ended; None when it worked, or ended in a sentence and an exit status."""
    if "Traceback (most recent call last)" in stderr:
        return "a traceback"
    if status == 0:
        return None
    if status < 0:
        return f"killed by signal {-status}" + (", after too long" if status == -14 else "")
    lines = stderr.strip().splitlines()
    if not lines or not lines[-1].startswith("error: "):
        return "no sentence at the end"
    if "(unexpected; " in lines[-1]:
        return "an error that nobody expected"
    return None if len(stderr) < 8000 else "more than a sentence"


def hostile(
    count: int, seed: int, directory: pathlib.Path, environment, only: int | None = None, told=lambda line: None
):
    """Starts launchers with random sets of flags.

    Args:
      count: the sets.
      seed: makes them.
      directory: an empty one, in which the launchers run.
      environment: of the launchers.
      only: the number of the one set to run; None for all.
      told: called with a line for each set.

    Returns:
      For each set that failed: its number, what was wrong, the command and the end of what it wrote.
    """
    failures = []
    (directory / "output").mkdir()
    with processes.serve(environment, directory / "output") as start:
        base = prepare(start, directory)
        names = {launcher: flag_names(start, launcher) for launcher in base}
        for number in range(count):
            # Each set on its own, so that it can be repeated alone.
            chance = random.Random(f"{seed} {number}")
            launcher = chance.choice(list(base))
            chosen = chance.sample(names[launcher], chance.choice((1, 1, 2, 3)))
            settings = [name for name in SETTINGS_OF if name in names[launcher]]
            if settings and chance.random() < 0.5:
                chosen[0] = chance.choice(settings)
            # Most values are of the flag's kind; others are refused at once, and nothing behind them is tried.
            kinds = [chance.choices((KINDS.get(name, WHOLE), NUMBERS, ALL), (4, 1, 1))[0] for name in chosen]
            nasty = [f"--{name}={chance.choice(kind)}" for name, kind in zip(chosen, kinds, strict=True)]
            if only is not None and number != only:
                continue
            workdir = [] if launcher == "report" else [f"--workdir={directory}/{number}"]
            process = start(launcher, *workdir, *base[launcher], *nasty, cwd=directory, timeout=TIMEOUT)
            status = process.wait()
            stderr = process.outputs()[1]
            wrong = failure(status, stderr)
            command = ascii(f"{launcher} {' '.join(flag[:100] for flag in nasty)}")
            told(f"{number}: {status} {command}: {wrong or stderr.strip()[-200:]!a}")
            if wrong:
                failures.append(f"{number}: {wrong}: {command}: {stderr.strip()[-600:]}")
    return failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary)
        environment = processes.environment(directory / "compilation_cache") | {
            "HOME": temporary,
            # Compiles in less than half of the time.
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
        }
        failures = hostile(
            flags.count, flags.seed, directory, environment, flags.only, lambda line: print(line, flush=True)
        )
    print(f"{len(failures)} of {flags.count} failed", *failures, sep="\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
