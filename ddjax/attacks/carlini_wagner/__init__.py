"""The three attacks of Carlini and Wagner: L2, L0 and Linf, each on a whole batch at once.

All three minimize a distance plus a constant times the margin by which the classifier still misses the goal, over tanh
variables, with Adam. Public implementations run one input after the other, or let the inputs of a batch decide together
when to stop. Here every example has its own constant, search, optimizer state and end, in one compiled loop; finished
examples leave the batch (`loops.while_live`).

Settings that they share:
  confidence: kappa, the margin between the logits, at least 0; may be traced, and one for each example.
  learning_rate: of Adam, on the tanh variables, or on the inputs where the bounds are not finite, above 0; may be
    traced. None takes 0.01 on tanh variables (Linf: 0.005).
  num_steps: the steps for each constant.
  abort_early: whether the steps for one constant end when a tenth of them brought less than 0.01 percent.

Reference:
  Carlini and Wagner, Towards Evaluating the Robustness of Neural Networks, 2017 (arXiv 1608.04644).

Departures from the paper and its authors' code, for all three:
  The tanh spans slightly more than the box, and its variable is kept within it. Pixels at the bounds, most of those of
  MNIST, then start where they are and with a slope of 1e-3. Shrinking the input into the span by 1e-6, as the authors
  do, gives them a slope of 1e-6, so that hundreds of steps pass before they move. Without finite bounds the variable is
  the input itself.
  The steps for one constant end early by the progress of the example's least loss, not by that of its batch's loss.
  What counts as reached must be so by more than rounding (`Examples.reached`).
"""

import functools

from ddjax.attacks.carlini_wagner.l0 import carlini_wagner_l0
from ddjax.attacks.carlini_wagner.l2 import carlini_wagner_l2, search_l2
from ddjax.attacks.carlini_wagner.linf import carlini_wagner_linf
from ddjax.attacks.contract import declare

__all__ = ["carlini_wagner_l0", "carlini_wagner_l2", "carlini_wagner_linf", "search_l2"]

_declare = functools.partial(declare, kind="minimum", targets="optional", random=False, access="gradient", refills=True)
_EXAMPLE = {"learning_rate": 0.1, "num_steps": 60}
_EXAMPLE_LINF = {"learning_rate": 0.05, "num_steps": 60, "initial_const": 0.01, "const_factor": 4.0}

ATTACKS = (
    _declare(carlini_wagner_l0, norm="l0", example=_EXAMPLE | {"const_factor": 5.0}),
    _declare(carlini_wagner_l2, norm="l2", example=_EXAMPLE | {"search_steps": 5}),
    _declare(carlini_wagner_linf, norm="linf", example=_EXAMPLE_LINF),
)
