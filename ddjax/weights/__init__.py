"""Trained weights from files: PyTorch's without PyTorch, safetensors, NumPy's, flax's and orbax's.

`load_state_dict` reads PyTorch's files and safetensors, `load_weights` all formats, and `check_match` refuses weights
that do not fit a network.
"""

from ddjax.weights.loading import load_weights
from ddjax.weights.state_dict import check_match, load_state_dict

__all__ = ["check_match", "load_state_dict", "load_weights"]
