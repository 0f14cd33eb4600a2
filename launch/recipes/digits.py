"""Recipes for scikit-learn's digits."""

from .base import Recipe

_DIGITS = Recipe(
    name="digits",
    description="""The embedded default: scikit-learn's 8 x 8 handwritten digits and a small network.

    python -m launch.sweep. About a minute on two CPU cores for nine temperatures. JSMA succeeds on most pairs
    without distillation and on almost none at T = 100, where the tempered attack succeeds again. The budget of 12 of 64
    features is the share that shows the same picture on these small images as 112 of 784 on MNIST.""",
    dataset="digits",
    network="digits",
    epochs=40,
    batch_size=64,
    optimizer="adam",
    learning_rate=1e-2,
    jsma_features=12,
    fgsm_epsilon=0.3,
)

RECIPES = (_DIGITS,)
