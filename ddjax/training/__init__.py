"""Training: one step, one resumable loop, and what is trained by them.

`train` and `distill` train classifiers from arrays. `Trainer` trains the networks of a run, as stacks. Generative
models have steps of their own and use the same state and the same loop.
"""

from ddjax.state import TrainState, check_network, create_state
from ddjax.training.adversaries import pgd_examples
from ddjax.training.classifiers import distill, train
from ddjax.training.distillation import soft_labels, with_noise
from ddjax.training.loop import train_epochs
from ddjax.training.stack import train_stack
from ddjax.training.step import (
    Adversary,
    Augmentation,
    Member,
    epoch_rows,
    step_member,
    steps_per_epoch,
    train_epoch,
    train_member,
    train_step,
)
from ddjax.training.trainer import Network, Settings, Trainer, tag

__all__ = [
    "Adversary",
    "Augmentation",
    "Member",
    "Network",
    "Settings",
    "TrainState",
    "Trainer",
    "check_network",
    "create_state",
    "distill",
    "epoch_rows",
    "pgd_examples",
    "soft_labels",
    "step_member",
    "steps_per_epoch",
    "tag",
    "train",
    "train_epoch",
    "train_epochs",
    "train_member",
    "train_stack",
    "train_step",
    "with_noise",
]
