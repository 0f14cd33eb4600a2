"""How the library tells of its progress: through a callable that the caller gives; it prints nothing itself."""

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Bar(Protocol):
    """What shows the progress of one piece of work; tqdm's bars are of this form."""

    def update(self, n: int = 1) -> Any:
        """Adds to the units of work that are done."""

    def set_postfix(self, **values: Any) -> Any:
        """Shows values, such as the loss."""


@runtime_checkable
class Progress(Protocol):
    """Starts to show the progress of a piece of work."""

    def __call__(self, total: int, description: str, unit: str) -> contextlib.AbstractContextManager[Bar]:
        """Opens a bar for `total` units of work; `unit` is the name of one, in the singular."""
        ...


class _Nothing:
    def update(self, n: int = 1) -> None:
        """Shows nothing."""

    def set_postfix(self, **values: Any) -> None:
        """Shows nothing."""


@contextlib.contextmanager
def silent(total: int, description: str, unit: str) -> Iterator[Bar]:
    """A `Progress` that shows nothing; the default of the library."""
    del total, description, unit
    yield _Nothing()
