"""Choices that depend on the platform for which a program is compiled.

The default backend of the process does not decide where a program runs: it may be lowered for another platform, or its
arrays may live elsewhere. Therefore no module asks for it. `by_platform` puts both forms into the traced program, and
JAX keeps the one that fits when the platform is known.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from jax import lax

Result = TypeVar("Result")


def by_platform(*arguments: Any, cpu: Callable[..., Result], default: Callable[..., Result]) -> Result:
    """Calls one of two functions, by the platform for which the program is lowered.

    It works in all of JAX's transformations. Both functions are traced, so each must support the transformations that
    are applied; only the chosen one is compiled. Without `jit` the default device decides.

    Args:
      *arguments: pytrees of arrays, which the functions take. They may also close over arrays.
      cpu: the form for CPU.
      default: the form for all other platforms. The results of both must agree in structure, shape and dtype.

    Returns:
      The result of the chosen function.

    Raises:
      TypeError: where the results do not agree.
    """
    if cpu is default:
        return cpu(*arguments)
    return lax.platform_dependent(*arguments, cpu=cpu, default=default)
