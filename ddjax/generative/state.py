"""The state of a generative model in training, and how it is stored."""

from typing import Any

from flax import struct


class GenerativeState(struct.PyTreeNode):
    """Parameters, optimizer state and step count, with the key from which all randomness of training derives.

    Attributes:
      params: of the model; of several networks a dictionary by name.
      averages: a running mean of the parameters, for use after training; empty where the model takes the last ones.
      opt_state: of the optimizer, or of one for each network.
      step: how many steps have been taken.
      key: order of the examples and all draws of any step follow from it and the step's number, so that training
        resumed from a checkpoint repeats what would have been.
      model: the network or networks; compared by value.
      optimizer: one, or one for each network. States of equal programs need the same object.
    """

    params: Any
    opt_state: Any
    step: Any
    key: Any
    averages: Any = struct.field(default_factory=dict)
    model: Any = struct.field(pytree_node=False, default=None)
    optimizer: Any = struct.field(pytree_node=False, default=None)

    @property
    def variables(self) -> dict[str, Any]:
        """What checkpoints hold beside the optimizer's state."""
        return {"params": self.params} | ({"averages": self.averages} if self.averages else {})

    @property
    def in_use(self) -> Any:
        """The parameters after training: their running mean where there is one."""
        return self.averages or self.params
