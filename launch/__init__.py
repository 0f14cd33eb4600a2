"""Command-line launchers."""

import gc
import sys
import types

# Importing and tracing make many objects, nearly all of which stay: at Python's own threshold, looking for garbage
# among them took a second of every start.
gc.set_threshold(20_000)


def _excepthook(kind: type[BaseException], error: BaseException, traceback: types.TracebackType | None) -> None:
    """Ctrl-C while a launcher is still being imported needs no traceback; the exit status says what happened."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _excepthook
