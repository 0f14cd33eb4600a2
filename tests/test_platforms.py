import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ddjax.platforms import by_platform, for_cpu

VALUES = np.linspace(0.1, 2, 6).astype(np.float32)


def chosen(x, scale=2.0):
    """The sine on CPU, the hyperbolic tangent elsewhere."""
    return by_platform(x, cpu=lambda x: jnp.sin(scale * x), default=lambda x: jnp.tanh(scale * x))


def sine(x, scale=2.0):
    return jnp.sin(scale * x)


# Programs that call a function `f`, with each transformation.
PROGRAMS = {
    "call": lambda f: f,
    "grad": lambda f: jax.grad(lambda x: f(x).sum()),
    "grad of grad": lambda f: jax.grad(lambda x: jax.grad(lambda y: f(y).sum())(x).sum()),
    "vmap": lambda f: jax.vmap(f),
    "vmap over a closure": lambda f: lambda x: jax.vmap(lambda scale: f(x, scale))(x),
    "scan": lambda f: lambda x: jax.lax.scan(lambda carry, y: (f(carry), f(y)), x, x),
    "grad of scan": lambda f: jax.grad(lambda x: jax.lax.scan(lambda c, _: (f(c), None), x, length=3)[0].sum()),
    "while_loop": lambda f: lambda x: jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, f(s[1])), (0, x))[1],
    "remat": lambda f: jax.grad(lambda x: jax.checkpoint(f)(x).sum()),
    "nested": lambda f: lambda x: by_platform(x, cpu=f, default=lambda x: f(x) + 1),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_by_platform_takes_the_form_of_the_platform_in_each_transformation(name):
    program, wanted = PROGRAMS[name](chosen), PROGRAMS[name](sine)(jnp.asarray(VALUES))
    found = [jax.jit(lambda x: program(x))(VALUES), program(jnp.asarray(VALUES))]
    with jax.disable_jit():
        found.append(program(jnp.asarray(VALUES)))
    for result in found:
        for got, expected in zip(jax.tree.leaves(result), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5)
    cpu, cuda = (
        jax.jit(lambda x: program(x)).trace(VALUES).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda")
    )
    assert "sine" in cpu
    assert "tanh" not in cpu
    assert "sine" not in cuda
    assert "tanh" in cuda


@pytest.mark.parametrize("explicit", [False, True])
def test_by_platform_works_on_a_mesh(explicit):
    kind = jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
    values = jax.device_put(VALUES, jax.sharding.NamedSharding(mesh, P("data")))
    gradient = lambda x: jax.grad(lambda x: chosen(x).sum())(x)
    wanted = 2 * np.cos(2 * VALUES)
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(jax.jit(gradient)(values), wanted, rtol=1e-5)
        mapped = jax.jit(jax.shard_map(gradient, in_specs=P("data"), out_specs=P("data")))
        np.testing.assert_allclose(mapped(values), wanted, rtol=1e-5)


def test_program_for_cpu_has_no_other_form():
    def program(x):
        with for_cpu():
            return chosen(x)

    assert "tanh" in str(jax.make_jaxpr(lambda x: chosen(x))(VALUES))
    assert "tanh" not in str(jax.make_jaxpr(program)(VALUES))
    # It holds for that program alone.
    assert "tanh" in str(jax.make_jaxpr(lambda x: chosen(x))(VALUES))
    np.testing.assert_allclose(jax.jit(program)(VALUES), sine(VALUES), rtol=1e-6)


def test_by_platform_refuses_forms_that_do_not_agree():
    with pytest.raises(TypeError):
        jax.jit(lambda x: by_platform(x, cpu=lambda x: x, default=lambda x: x.sum()))(VALUES)


def test_by_platform_of_equal_functions_is_the_function():
    assert "cond" not in str(jax.make_jaxpr(lambda x: by_platform(x, cpu=jnp.sin, default=jnp.sin))(VALUES))
