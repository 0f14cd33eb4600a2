"""Networks that were trained in PyTorch, as classifiers.

`from_torch` takes any module of supported operations, and needs PyTorch to import it. `sequential` takes a short
description of a plain stack of layers and its weights, and needs no PyTorch. `operations` has what its layers compute.
"""

from ddjax.torch_import.exporting import from_torch
from ddjax.torch_import.stack import sequential

__all__ = ["from_torch", "sequential"]
