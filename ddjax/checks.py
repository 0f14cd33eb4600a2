"""Checks of settings, which all packages share. Each refuses a bad value before any work is done."""

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from jax.core import Tracer

_LARGEST = 2**31 - 1


def known_values(array: Any) -> np.ndarray | None:
    """The values of an array as NumPy has them; None for None and inside of a trace, where they are not known."""
    return None if array is None or isinstance(array, Tracer) else np.asarray(array)


def check_number(
    name: str,
    value: Any,
    *,
    above: float = -np.inf,
    least: float = -np.inf,
    below: float = np.inf,
    most: float = np.inf,
) -> None:
    """Refuses a setting that is not a finite number, or an array of them, in its range.

    Args:
      name: of the setting.
      value: a Python, NumPy or JAX number, or an array of them. The values of traced ones are not checked.
      above: the value must be larger than this.
      least: the value must be at least this.
      below: the value must be smaller than this.
      most: the value must be at most this.

    Raises:
      ValueError: with the range.
      TypeError: for a value that is neither a number nor an array.
    """
    try:
        if isinstance(value, list | tuple | str | dict | None):
            raise TypeError
        known = known_values(value)
        known = None if known is None else known.astype(np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number or an array, got {value!r}") from None
    if known is None:
        return
    if not (np.isfinite(known) & (known > above) & (known >= least) & (known < below) & (known <= most)).all():
        ends = (("above", above), ("at least", least), ("below", below), ("at most", most))
        wanted = " and ".join(f"{word} {end:g}" for word, end in ends if np.isfinite(end))
        raise ValueError(f"{name} must be a finite number {wanted}".rstrip() + f", got {value}")


def check_whole_number(name: str, value: Any, *, least: int) -> None:
    """Refuses a structural setting that is not a whole number of at least `least`.

    Raises:
      ValueError: with the least value.
      TypeError: for a traced value, which cannot decide the structure of a program.
    """
    if isinstance(value, Tracer):
        raise TypeError(f"{name} decides the structure of the program and cannot be traced; pass a Python integer")
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if value > _LARGEST:
        raise ValueError(f"{name} must be at most {_LARGEST}, the largest integer of 32 bits, got {value}")


def check_choice(name: str, value: Any, known: Collection[str]) -> None:
    """Refuses a word that is not one of the known ones.

    Raises:
      ValueError: with the known ones.
    """
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")


def first_line(error: Exception) -> str:
    """What an error of another library says, in one line."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def listed(names: Iterable[str], separator: str = ", ", *, most: int = 10) -> str:
    """Some names, of which the first few are shown."""
    shown = list(names)
    more = [f"and {len(shown) - most} more"] if len(shown) > most else []
    return separator.join(shown[:most] + more)


def printable(text: str, *, most: int = 80) -> str:
    """The start of a text that a file or another library chose, without what a terminal would obey."""
    return "".join(each if each.isprintable() else "?" for each in text[:most])
