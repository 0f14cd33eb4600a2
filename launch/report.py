"""Makes the tables, figures and page of a run again: `python -m launch.report --workdir=runs/sweep_digits`.

A directory with the pieces of a job array (`launch.sweep --shard=i/n`) first becomes one run.
"""

from absl import flags

from . import common, pages, shards

FLAGS = flags.FLAGS


def main() -> None:
    """Writes the report of an existing run."""
    if FLAGS.workdir is None:
        raise ValueError("--workdir must name the directory of a run")
    if shards.are_in(FLAGS.workdir):
        for shard in shards.merge(FLAGS.workdir):
            print(f"missing: --shard={shard.index}/{shard.count} has not begun")
    print(f"report: {pages.write(FLAGS.workdir)}")


if __name__ == "__main__":
    common.run(main)
