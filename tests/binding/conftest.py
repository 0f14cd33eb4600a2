import jax
import pytest


@pytest.fixture(autouse=True, scope="package")
def as_users_have_it():
    """jax as it is by default, which other frameworks need, and Keras on JAX."""
    with (
        pytest.MonkeyPatch.context() as patch,
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
    ):
        patch.setenv("KERAS_BACKEND", "jax")
        yield
