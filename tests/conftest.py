"""Strict settings for all tests, shape checks by jaxtyping and beartype, and what several tests use."""

import gc
import importlib.metadata
import os
import pathlib

import jax
import pytest
from jaxtyping import install_import_hook

# Most of the time goes into compiling programs that run once, which takes less than half as long without LLVM's
# optimizations and, where jaxlib still has another way, without XLA's emitters of fusions. Read when the first array is
# made, and by the processes that tests start. XLA_FLAGS= in the environment tests with them.
_FLAGS = ["--xla_backend_optimization_level=0"]
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    # Later ones end the process at a flag that they do not know.
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS))
# An operation is compiled with the stack of calls that made it, and those of pytest are deep: a tenth of the time.
os.environ.setdefault("JAX_INCLUDE_FULL_TRACEBACKS_IN_LOCATIONS", "0")
jax.config.update("jax_include_full_tracebacks_in_locations", False)
# Before any array exists: two CPU devices to shard over, and no silent promotion of dtypes or ranks.
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# On accelerators, products in reduced precision are too far from closed forms.
jax.config.update("jax_default_matmul_precision", "highest")
# A developer's cache must not decide what is tested.
jax.config.update("jax_compilation_cache_dir", None)

# Tracing makes many objects that live as long as the program; looking through them again and again takes time.
gc.set_threshold(200_000, 100, 100)

install_import_hook("ddjax", "beartype.beartype")


# Each compiled program takes a few of the mappings of memory that Linux grants a process, 65,530 by default. XLA ends
# the process when there are none left.
_MAPPINGS, _MOST_MAPPINGS = pathlib.Path("/proc/self/maps"), 25_000


@pytest.fixture(autouse=True, scope="module")
def bounded_programs():
    """Forgets compiled programs, after a file of tests, when they have become many."""
    yield
    if _MAPPINGS.exists() and _MAPPINGS.read_bytes().count(b"\n") > _MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


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
