"""Recipes for Animals-10, photographs in folders."""

from .base import Recipe

_ANIMALS10 = Recipe(
    name="animals10",
    description="""Animals-10, photographs in a folder for each class, and a VGG network with batch normalization.

    python -m launch.train --recipe=animals10 --dataset=folder:PATH. Made for a GPU. The settings of a public project on
    the robustness of classifiers, with what it meant to do and did not: its augmentation runs, and its class weights go
    to their own classes. Nothing was published about it.""",
    dataset="folder:animals10",
    network="vgg10",
    epochs=15,
    batch_size=32,
    optimizer="adam",
    learning_rate=1e-4,
    decay=0.1,
    decay_epochs=10,
    augmentation="photographs",
    class_weights=True,
    image_size=224,
    fgsm_epsilon=8 / 255,
)

RECIPES = (_ANIMALS10,)
