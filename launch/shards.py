"""Job arrays: a sweep in independent pieces, and one run made of their results.

A scheduler starts `n` jobs with `--shard=0/n` to `--shard=(n-1)/n` and the same `--workdir`. Each writes a run of its
own in `WORKDIR/shard_I_of_N`; `merge` makes one run of them.
"""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from ddjax import runs

T = TypeVar("T")
_DIRECTORY = re.compile(r"shard_(\d+)_of_(\d+)")


class Shard(NamedTuple):
    """One piece of a job array.

    Attributes:
      index: from 0.
      count: how many there are.
    """

    index: int
    count: int

    @property
    def directory(self) -> str:
        """The name of its run within the work directory."""
        return f"shard_{self.index}_of_{self.count}"

    def take(self, rows: Sequence[T]) -> list[T]:
        """Its rows of all rows: every `count`-th."""
        return list(rows[self.index :: self.count])


def parse(text: str) -> Shard:
    """Reads `i/n`.

    Raises:
      ValueError: for anything else, or an i that is not from 0 to n - 1.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(f"a shard is i/n with i from 0 to n - 1, got {text}")
    return Shard(int(match[1]), int(match[2]))


def are_in(workdir: runs.PathLike) -> bool:
    """Whether a directory holds pieces of a job array."""
    workdir = pathlib.Path(workdir)
    return workdir.is_dir() and bool(_find(workdir))


def _find(workdir: pathlib.Path) -> dict[Shard, pathlib.Path]:
    found = {}
    for path in sorted(workdir.iterdir()):
        match = _DIRECTORY.fullmatch(path.name)
        if match and (path / "config.json").exists():
            found[Shard(int(match[1]), int(match[2]))] = path
    return found


def merge(workdir: runs.PathLike) -> list[Shard]:
    """Makes one run of the pieces in a directory; may be repeated as more of them finish.

    Args:
      workdir: what the pieces were started with. Gets a `config.json`, a `results.jsonl` and the arrays of all pieces.

    Returns:
      The pieces that have not begun.

    Raises:
      runs.RunError: when there is no piece, when pieces belong to different runs, or when the directory holds a run of
        its own.
    """
    workdir = pathlib.Path(workdir)
    if not are_in(workdir):
        raise runs.RunError(f"{workdir} holds no pieces of a job array")
    pieces = dict(sorted(_find(workdir).items()))
    if (workdir / "config.json").exists() and not runs.read_config(workdir).get("merged"):
        raise runs.RunError(f"{workdir} holds a run of its own beside the pieces of a job array")
    counts = sorted({shard.count for shard in pieces})
    if len(counts) > 1:
        raise runs.RunError(f"{workdir} holds pieces of different job arrays, of {counts} pieces")
    configs = {shard: runs.read_config(path) for shard, path in pieces.items()}
    (first, config), *others = configs.items()
    for shard, other in others:
        for part in ("flags", "resolved"):
            differing = runs.differing(_whole(config[part]), _whole(other[part]))
            if differing:
                raise runs.RunError(f"{first.directory} and {shard.directory} differ: {'; '.join(differing)}")
    lines = []
    for path in pieces.values():
        lines += [json.dumps(record) + "\n" for record in runs.read_results(path)]
        for arrays in sorted(path.glob("**/*.npz")):
            target = workdir / arrays.relative_to(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            runs.write_atomically(target, arrays.read_bytes())
    merged = config | {"flags": _whole(config["flags"]), "merged": [shard.directory for shard in pieces]}
    runs.write_atomically(workdir / "results.jsonl", "".join(lines).encode())
    runs.write_atomically(workdir / "config.json", (json.dumps(merged, indent=2) + "\n").encode())
    return [Shard(index, counts[0]) for index in range(counts[0]) if Shard(index, counts[0]) not in pieces]


def _whole(settings: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in settings.items() if name != "shard"}
