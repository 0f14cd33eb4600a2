"""Choices that depend on the platform for which a program is compiled.

The default backend of the process does not decide where a program runs: it may be lowered for another platform, or its
arrays may live elsewhere. Therefore no module asks for it. `by_platform` puts both forms into the traced program, and
JAX keeps the one that fits when the platform is known.
"""

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax import lax

Result = TypeVar("Result")
# Part of the key under which JAX keeps traces.
_is_for_cpu = jax.make_user_context(False)


def by_platform(*arguments: Any, cpu: Callable[..., Result], default: Callable[..., Result]) -> Result:
    """Calls one of two functions, by the platform for which the program is lowered.

    It works in all of JAX's transformations. Both functions are traced, so each must support the transformations that
    are applied; only the chosen one is compiled. Without `jit` the default device decides. Within `for_cpu`, only the
    form for CPU is traced.

    Args:
      *arguments: pytrees of arrays, which the functions take. They may also close over arrays.
      cpu: the form for CPU.
      default: the form for all other platforms.

    Raises:
      TypeError: where the results of the two do not agree in structure, shape and dtype.
    """
    if cpu is default or _is_for_cpu.value:
        return cpu(*arguments)
    return lax.platform_dependent(*arguments, cpu=cpu, default=default)


def for_cpu() -> contextlib.AbstractContextManager[Any]:
    """Traces a program for CPU alone, which saves the time that the other forms take to trace.

    Use it inside the compiled function, so that it holds for that program alone.
    """
    return _is_for_cpu(True)
