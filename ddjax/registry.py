"""Registries: what attacks, defenses, data sets and networks there are, by name or by import path.

A file declares what it defines, at its end, as a tuple of declarations: `ATTACKS`, `DEFENSES`, `DATASETS`, `NETWORKS`,
`LOSSES` or `ADVERSARIES`. A registry collects these tuples from the files of a package; nobody keeps a list by hand. A
user's file ends in the same way, and is named by its import path, `package.module:name`.
"""

import importlib
import inspect
import math
import pkgutil
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

_KINDS = (bool, int, float, str)


@runtime_checkable
class Declaration(Protocol):
    """What all declarations have: a name."""

    @property
    def name(self) -> str:
        """The name in the registry."""
        ...


D = TypeVar("D", bound=Declaration)


class Registry(dict[str, D]):
    """The declarations of one kind by their names, in order of registration; `find` also takes import paths."""

    def __init__(self, kind: str, attribute: str, declared: Iterable[D] = ()) -> None:
        """Makes a registry.

        Args:
          kind: what it holds, in the singular, for errors: `"attack"`.
          attribute: the name of the tuple in which a file declares: `"ATTACKS"`.
          declared: what it holds from the start.
        """
        super().__init__()
        self._kind, self._attribute = kind, attribute
        for declaration in declared:
            self.register(declaration)

    def collect(self, package: types.ModuleType) -> None:
        """Registers what the files of a package declare, in alphabetical order of the files."""
        for info in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{info.name}")
            for declaration in getattr(module, self._attribute, ()):
                self.register(declaration)

    def register(self, declaration: D) -> D:
        """Adds a declaration.

        Raises:
          ValueError: when the name is taken by another one.
        """
        if self.setdefault(declaration.name, declaration) != declaration:
            raise ValueError(f"there already is {self._kind} {declaration.name!r}")
        return declaration

    def find(self, name: str) -> D:
        """The declaration of a registered name, or of an import path `package.module:name`.

        Raises:
          ValueError: for an unknown name, with the known ones; for a module that cannot be imported or that declares
            nothing of that name.
        """
        if name in self:
            return self[name]
        path, colon, attribute = name.partition(":")
        if not colon:
            raise ValueError(
                f"unknown {self._kind} {name!r}; known: {', '.join(self)}; "
                f"or the import path of another one, package.module:name"
            )
        declared = getattr(import_module(path, self._kind), self._attribute, None)
        if declared is None:
            raise ValueError(f"{path} declares no {self._kind}; its last line must be {self._attribute} = (...,)")
        by_name = {declaration.name: declaration for declaration in declared}
        if attribute not in by_name:
            raise ValueError(f"{path} declares no {self._kind} {attribute!r}; it declares: {', '.join(by_name)}")
        return by_name[attribute]

    def split(self, text: str) -> tuple[str, str]:
        """Splits `name:settings` or `package.module:name:settings` into the name and the settings, empty for none."""
        first, _, rest = text.partition(":")
        second, _, more = rest.partition(":")
        if first not in self and second.isidentifier():
            return f"{first}:{second}", more
        return first, rest


def import_module(path: str, kind: str) -> types.ModuleType:
    """Imports a user's module.

    Args:
      path: `package.module`.
      kind: what it is expected to hold, for errors.

    Raises:
      ValueError: when there is no such module, or it raises an error itself.
    """
    try:
        return importlib.import_module(path)
    except Exception as error:
        raise ValueError(f"cannot import {path!r}, which should hold the {kind}: {error}") from error


def read_settings(
    where: str, name: str, settings: str, parameters: Mapping[str, inspect.Parameter]
) -> dict[str, bool | int | float | str | None]:
    """Reads settings, `key=value,key=value`.

    A value is read by the type of its parameter's default or, where that is None, by its annotation. Numbers may be
    fractions, `8/255`.

    Args:
      where: the flag, for errors.
      name: of what has the settings, for errors.
      settings: the text; empty for none.
      parameters: the known settings, by name; see `settings_of`.

    Raises:
      ValueError: for an unknown key, with the known ones and their defaults; a key that is given twice; a missing
        value; a value of another type.
    """
    found: dict[str, bool | int | float | str | None] = {}
    for part in settings.split(",") if settings else []:
        key, _, value = part.partition("=")
        if key not in parameters:
            raise ValueError(f"{where}: {name} has no setting {key!r}; known: {describe(parameters)}")
        if not value:
            raise ValueError(f"{where}: {key!r} needs a value, as in {key}=VALUE")
        if key in found:
            raise ValueError(f"{where}: {key!r} is given twice")
        found[key] = _read(f"{where}: {key}", value, parameters[key])
    return found


def describe(parameters: Mapping[str, inspect.Parameter]) -> str:
    """The settings with their defaults, for help and errors."""

    def shown(name: str, default: Any) -> str:
        if default is inspect.Parameter.empty:
            return name
        return f"{name}={default:g}" if isinstance(default, float) else f"{name}={default}"

    return ", ".join(shown(name, each.default) for name, each in parameters.items()) or "none"


def settings_of(function: Callable[..., Any], reserved: tuple[str, ...] = ()) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a function that a flag can set: booleans, numbers and words, less the reserved."""
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in reserved and _kind(parameter) is not None
    }


def is_real(parameter: inspect.Parameter) -> bool:
    """Whether a setting is a real number, which a program takes as an argument; others are part of the program."""
    return _kind(parameter) is float


def _kind(parameter: inspect.Parameter) -> type | None:
    """The type of a setting that a flag can set; None for another type."""
    if type(parameter.default) in _KINDS:
        return type(parameter.default)
    members = typing.get_args(parameter.annotation) or (parameter.annotation,)
    return next((kind for kind in _KINDS if kind in members), None)


def _read(where: str, value: str, parameter: inspect.Parameter) -> bool | int | float | str | None:
    kind = _kind(parameter)
    if parameter.default is None and value.lower() == "none":
        return None
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise ValueError(f"{where} must be true or false, got {value!r}")
        return value.lower() == "true"
    if kind is str or kind is None:
        return value
    number = _read_number(where, value)
    if kind is int and number != int(number):
        raise ValueError(f"{where} must be a whole number, got {value}")
    return kind(number)


def _read_number(where: str, value: str) -> float:
    above, slash, below = value.partition("/")
    try:
        number = float(above) / float(below) if slash else float(value)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{where} must be a number, got {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{where} must be a finite number, got {value}")
    return number
