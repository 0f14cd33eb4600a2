"""Strict settings for all tests, shape checks by jaxtyping and beartype, and what several tests use."""

import os

# Most of the time goes into compiling programs that run once; without LLVM's optimizations and XLA's emitters of
# fusions, compiling takes less than half as long. Read when the first array is made, and by the processes that tests
# start. XLA_FLAGS= in the environment tests with them.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")

import jax
import pytest
from jaxtyping import install_import_hook

# Before any array exists: two CPU devices to shard over, and no silent promotion of dtypes or ranks.
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# A developer's cache must not decide what is tested.
jax.config.update("jax_compilation_cache_dir", None)

install_import_hook("ddjax", "beartype.beartype")


@pytest.fixture(scope="session")
def tfds_data_dir():
    """The directory of prepared data sets, or a skip that says how to provide one."""
    path = os.environ.get("TFDS_DATA_DIR")
    if not path or not os.path.isdir(os.path.join(path, "mnist")):
        pytest.skip("needs the prepared MNIST: set TFDS_DATA_DIR to a directory of tensorflow-datasets that holds it")
    return path


@pytest.fixture
def optax_promotion():
    """Lets dtypes promote where optax relies on it: its Adam raises a float to an integer power."""
    with jax.numpy_dtype_promotion("standard"):
        yield
