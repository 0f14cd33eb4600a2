"""Makes the tables, figures and page of a run again: `python -m launch.report --workdir=runs/sweep_digits`.

A directory with the pieces of a job array (`launch.sweep --shard=i/n`) first becomes one run.

With `--readme=FILE --block=NAME`, nothing of the run is touched; its table replaces what stands in FILE between
`<!-- BEGIN NAME -->` and `<!-- END NAME -->`.
"""

from absl import flags

from ddjax import report, shards

from . import common

FLAGS = flags.FLAGS
_README = flags.DEFINE_string("readme", None, "A Markdown file to put the table into.")
_BLOCK = flags.DEFINE_string("block", "digits", "The name of the place in it.")


def main() -> None:
    """Writes the report of an existing run."""
    if FLAGS.workdir is None:
        raise ValueError("--workdir must name the directory of a run")
    if shards.are_in(FLAGS.workdir):
        for shard in shards.merge(FLAGS.workdir):
            print(f"missing: --shard={shard.index}/{shard.count} has not begun")
    if _README.value is None:
        print(f"report: {report.write(FLAGS.workdir)}")
        return
    report.update_readme(_README.value, _BLOCK.value, report.readme_table(FLAGS.workdir))
    print(f"{_README.value}: {_BLOCK.value}")


if __name__ == "__main__":
    common.run(main)
