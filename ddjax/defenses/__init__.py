"""Defenses: one paper, one file, each of which ends with its declarations.

`DEFENSES` holds all declarations by name. `parse("jpeg:quality=50", dataset)` or `defense("jpeg", quality=50)` makes a
`Defense`. Its methods give the classifier as it is deployed, as a defense-unaware attacker sees it, and as a
defense-aware one does.

A defense of your own is declared in the same way, and is then known by its name:

    ddjax.defenses.register(ddjax.defenses.declare(my_transform, gradient="straight-through"))

On the command line it is known by its import path, `--defense=package.module:name:key=value`; the module ends with
`DEFENSES = (declare(...),)`.

What all transforms here have in common, their docstrings do not repeat:

* Inputs are floats within [0, 1]. The outputs have their type and, where nothing else is said, their shape.
* A random transform takes a key for each input. The draw for an input depends on its key alone.
* A setting out of its documented range raises ValueError. So do inputs that are no images `[B, H, W, C]`, for a
  transform that looks at more than one value at a time.
"""

import inspect
import sys
from typing import Any

from ddjax import registry
from ddjax.classifier import Transform, bpda
from ddjax.defenses.declaration import PREPARED, Declaration, Defense, declare, with_settings

DEFENSES: registry.Registry[Declaration] = registry.Registry("defense", "DEFENSES")
DEFENSES.collect(sys.modules[__name__])
register = DEFENSES.register


def defense(name: str, dataset: str = "", **settings: Any) -> Defense:
    """A defense by its name, with its settings; `Defense.prepared` makes what it takes in addition.

    Args:
      name: registered, or an import path `package.module:name`.
      dataset: the name of the data set, for defenses with published settings for some of them.
      **settings: of the function and of what prepares it.

    Raises:
      ValueError: for an unknown name or setting, with the known ones.
    """
    found = DEFENSES.find(name)
    parameters = found.parameters
    # A flag cannot set all of them.
    others = inspect.signature(found.function).parameters
    for key in settings:
        own = key in others and others[key].kind is inspect.Parameter.KEYWORD_ONLY and key not in ("key", "evaluate")
        if not own and key not in parameters:
            raise ValueError(f"{name} has no setting {key!r}; known: {registry.describe(parameters)}")
    shown = ",".join(f"{key}={value}" for key, value in settings.items())
    return with_settings(found, f"{name}:{shown}" if shown else name, settings, dataset)


def parse(text: str, dataset: str = "") -> Defense:
    """Reads `name`, `name:key=value,key=value` or `package.module:name:key=value`.

    The data set and the result are those of `defense`.

    Raises:
      ValueError: for an unknown name or setting, with the known ones; a value that is missing or of another type.
    """
    name, settings = DEFENSES.split(text)
    found = DEFENSES.find(name)
    read = registry.read_settings(f"--defense={text}", name, settings, found.parameters)
    return with_settings(found, text, read, dataset)


def aware(transform: Transform) -> Transform:
    """The transform as an attack that knows it differentiates it: by its own gradient, or by BPDA, as declared.

    It has the same values. A transform that `ddjax.bpda` has made stays as it is.

    Raises:
      ValueError: for a transform that nobody has declared. Its gradient may be zero, and an attack that follows it
        would find the defense robust.
    """
    if transform.function is bpda(transform).function:
        return transform
    for declaration in DEFENSES.values():
        if declaration.kind == "transform" and declaration.function is transform.function:
            return declaration.differentiable(transform)
    name = getattr(transform.function, "__name__", repr(transform.function))
    raise ValueError(
        f"the transform {name} does not declare its gradient: register it with "
        f'ddjax.defenses.register(ddjax.defenses.declare({name}, gradient="own")), or with "straight-through", or with '
        '"substitute" and substitute=FUNCTION'
    )


__all__ = ["DEFENSES", "PREPARED", "Declaration", "Defense", "aware", "declare", "defense", "parse", "register"]
