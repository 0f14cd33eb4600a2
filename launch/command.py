"""The console command: `ddjax NAME ...` runs the launcher NAME, as `python -m launch.NAME ...` does in a clone."""

import pathlib
import re
import runpy
import sys

_HERE = pathlib.Path(__file__).parent


def launchers() -> dict[str, str]:
    """The launchers, each with what its first line says before its command. None is imported, so this is fast."""
    found = {}
    for path in sorted(_HERE.glob("*.py")):
        first = re.match(rf'"""(.*?)[:.]? *`python -m launch\.{path.stem}\b', path.read_text(encoding="utf-8"))
        if first:
            found[path.stem] = first[1]
    return found


def main() -> int:
    """Runs the launcher that the arguments of the process name, or lists all launchers.

    Returns:
      The exit status: 0 after the list, 2 for an unknown name. A launcher ends the process with its own status.
    """
    name, *rest = sys.argv[1:] or ["--help"]
    known = launchers()
    if name in known:
        module = f"{__package__}.{name}"
        sys.argv = [module, *rest]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return 0
    width = max(map(len, known))
    listed = "\n".join(f"  {each:<{width}}  {line}" for each, line in known.items())
    usage = f"usage: ddjax LAUNCHER [--FLAG=VALUE ...]\n\n{listed}\n\n`ddjax LAUNCHER --help` lists the flags of one."
    if name in ("--help", "-h"):
        print(usage)
        return 0
    print(f"error: unknown launcher {name!r}\n{usage}", file=sys.stderr)
    return 2
