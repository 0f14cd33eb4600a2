"""The arguments of a model's call that switch between training and evaluation, found by their names."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

# The names that libraries and users give them, and their values in training.
_MODES: Mapping[str, bool] = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


def parameters(call: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The named parameters of a function; empty where Python cannot tell."""
    try:
        return dict(inspect.signature(call).parameters)
    except (TypeError, ValueError):
        return {}


def evaluation_settings(known: Mapping[str, inspect.Parameter]) -> dict[str, bool]:
    """The values of those parameters that switch to evaluation, without those whose default does so."""
    return {
        name: not training
        for name, training in _MODES.items()
        if name in known and known[name].default is not (not training)
    }


def training_arguments(network: Any) -> dict[str, Any]:
    """The keyword arguments of `network.__call__` that switch it to training; empty where it has none."""
    known = parameters(type(network).__call__)
    return {name: value for name, value in _MODES.items() if name in known}


def evaluation_arguments(network: Any) -> dict[str, Any]:
    """The keyword arguments that switch a network to evaluation, without those whose default does so."""
    return evaluation_settings(parameters(type(network).__call__))


def static_arguments(what: str, call: Callable[..., Any], given: Mapping[str, Any], first: int) -> tuple[Any, ...]:
    """The keyword arguments of each call, sorted by name: those given, and those that switch training off.

    Args:
      what: the model, for errors.
      call: what is called.
      given: by the user.
      first: how many of its parameters are taken by variables and inputs.

    Raises:
      ValueError: for a name that the call does not have, a value that cannot be hashed, or a parameter without default
        that is not given.
    """
    names = parameters(call)
    known = dict(list(names.items())[first:])
    takes_all = any(each.kind is each.VAR_KEYWORD for each in names.values())
    named = {name: each for name, each in known.items() if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    for name, value in given.items():
        if name not in named and not takes_all and names:
            raise ValueError(f"{what} has no argument {name!r}; known: {', '.join(named) or 'none'}")
        try:
            hash(value)
        except TypeError:
            raise ValueError(
                f"the argument {name} of {what} is part of the program and must be hashable, such as a number or a "
                f"string, got a {type(value).__name__}; arrays belong to the variables"
            ) from None
    settings = {**evaluation_settings(named), **given}
    for name, each in named.items():
        if each.default is each.empty and name not in settings:
            raise ValueError(f"{what} needs the argument {name!r}: bind(model, ..., {name}=...)")
    return tuple(sorted(settings.items()))
