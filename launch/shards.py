"""Job arrays: a sweep in independent pieces, and one run made of their results.

A scheduler starts `n` jobs with `--shard=0/n` to `--shard=(n-1)/n` and the same `--workdir`. Each writes a run of its
own in `WORKDIR/shard_I_of_N`; `merge` makes one run of them.
"""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

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
    return bool(_find(pathlib.Path(workdir)))


def _find(workdir: pathlib.Path) -> dict[Shard, pathlib.Path]:
    """The runs of the pieces that have begun, in their order."""
    found = {}
    for path in workdir.glob("*/config.json"):
        match = _DIRECTORY.fullmatch(path.parent.name)
        if match:
            found[Shard(int(match[1]), int(match[2]))] = path.parent
    return dict(sorted(found.items()))


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
    pieces = _find(workdir)
    if not pieces:
        raise runs.RunError(f"{workdir} holds no pieces of a job array")
    if (workdir / "config.json").exists() and not runs.read_config(workdir).get("merged"):
        raise runs.RunError(f"{workdir} holds a run of its own beside the pieces of a job array")
    counts = sorted({shard.count for shard in pieces})
    if len(counts) > 1:
        raise runs.RunError(f"{workdir} holds pieces of different job arrays, of {counts} pieces")
    config = _common_config(pieces)
    lines = []
    for path in pieces.values():
        lines += [json.dumps(record) + "\n" for record in runs.read_results(path)]
        for arrays in path.glob("**/*.npz"):
            target = workdir / arrays.relative_to(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            runs.write_atomically(target, arrays.read_bytes())
    runs.write_atomically(workdir / "results.jsonl", "".join(lines).encode())
    runs.write_atomically(workdir / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    return [Shard(index, counts[0]) for index in range(counts[0]) if Shard(index, counts[0]) not in pieces]


def _common_config(pieces: Mapping[Shard, pathlib.Path]) -> dict[str, Any]:
    """The configuration of the merged run; the pieces may differ in nothing but their shard."""
    configs = {shard: runs.read_config(path) for shard, path in pieces.items()}
    for config in configs.values():
        for part in ("flags", "resolved"):
            config[part].pop("shard", None)
    (first, common), *others = configs.items()
    for shard, config in others:
        differing = [line for part in ("flags", "resolved") for line in runs.differing(common[part], config[part])]
        if differing:
            raise runs.RunError(f"{first.directory} and {shard.directory} differ: {'; '.join(differing)}")
    return common | {"merged": [shard.directory for shard in pieces]}
