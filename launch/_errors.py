"""What a user is told when a launcher fails: one sentence and an exit status, whatever library raised the error."""

import errno
import os
import re
from collections.abc import Iterator

from absl import flags

from ddjax import checkpoints, data, runs

# The status after an error that a user can mend, after any other one, and after Ctrl-C.
USER, UNEXPECTED, INTERRUPTED = 2, 1, 130
# Characters of a message that are shown.
LONGEST = 2000
INTERRUPTION = "interrupted; with the same flags, a run continues where it was"
_USER_ERRORS = (
    ValueError,
    OSError,
    runs.RunError,
    checkpoints.CheckpointError,
    data.DatasetUnavailableError,
    FloatingPointError,
    flags.Error,
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What absl says of a value of the wrong type, and what is said here.
_TYPES = {
    "invalid literal for int()": "a whole number",
    "could not convert string to float": "a number",
    "Non-boolean argument": "true or false",
}
# More than a few numbers in brackets, without brackets inside.
_NUMBERS = re.compile(r"\[[-+\d.,eE\sxnaif]{60,}\]")
_NESTED = re.compile(r"\[(?:\s*\[\.\.\.\],?)+(?:\s*\.\.\.,?)*\s*(?:\[\.\.\.\],?\s*)*\]")


def explain(error: BaseException) -> tuple[str, int]:
    """The sentence for an error, of about `LONGEST` characters at most and without the values of arrays; the status."""
    chain = list(_chain(error))
    text = "\n".join(map(str, chain))
    if any(isinstance(each, KeyboardInterrupt) for each in chain) or "KeyboardInterrupt" in text:
        return INTERRUPTION, INTERRUPTED
    if any(isinstance(each, OSError) and each.errno in _FULL for each in chain) or "No space left on device" in text:
        named = next((each.filename for each in chain if isinstance(each, OSError) and each.filename), None)
        where = f" for {named}" if named else ""
        return f"no space is left on the disk{where}; make room, and the same flags continue the run", USER
    if any(isinstance(each, MemoryError) for each in chain) or re.search(r"RESOURCE_EXHAUSTED|[Oo]ut of memory", text):
        return f"out of memory; a smaller --batch_size needs less ({_first_line(error)})", USER
    if isinstance(error, flags.IllegalFlagValueError):
        return shorten(_of_flag(str(error))), USER
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {os.fsdecode(error.filename)}" if error.filename else ""), USER
    if isinstance(error, _USER_ERRORS) and str(error):
        return shorten(str(error)), USER
    return f"{_first_line(error)} (unexpected; --traceback shows where it was raised)", UNEXPECTED


def shorten(text: str) -> str:
    """A message without the values of large arrays, and cut after `LONGEST` characters."""
    text = _NUMBERS.sub("[...]", text)
    while (shorter := _NESTED.sub("[...]", text)) != text:
        text = shorter
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def _of_flag(text: str) -> str:
    """What absl says of the value of a flag, `flag --NAME=VALUE: REASON`, without Python's words for types."""
    wanted = next((wanted for reason, wanted in _TYPES.items() if reason in text), None)
    name, equals, rest = text.removeprefix("flag ").partition("=")
    if wanted is None or not equals:
        return text
    value = rest.partition(": ")[0]
    return f"{name} must be {wanted}, got {value!r}"


def _first_line(error: BaseException) -> str:
    lines = shorten(str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
