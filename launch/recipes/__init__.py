"""Named settings: data, network, optimizer, epochs and what to attack with.

Recipes that are named after a paper have its settings. Those that end in `_quick` are reductions that two CPU cores
finish in minutes, and say what was reduced. A file ends with its recipes as `RECIPES`; a user's file does the same and
is named on the command line, `--recipe=package.module:name`.
"""

from ddjax.registry import Registry

from . import classifiers
from .base import Recipe, make_network, make_optimizer, make_settings

__all__ = ["RECIPES", "Recipe", "get", "make_network", "make_optimizer", "make_settings"]

RECIPES: Registry[Recipe] = Registry("recipe", "RECIPES")
for _recipe in classifiers.RECIPES:
    RECIPES.register(_recipe)
# A recipe by its name here, or by `package.module:name` of one that a module declares in `RECIPES`.
get = RECIPES.find
