"""The figures of a report: plain functions from numbers or saved examples to matplotlib figures.

Everything goes through `matplotlib.figure.Figure` directly, so nothing here touches pyplot's global state and a process
that draws its own plots is left alone. A function returns None where its data holds nothing to show.
"""

from ddjax.figures.attack import brackets, strip
from ddjax.figures.benchmark import growth, speedups
from ddjax.figures.carlini import comparison
from ddjax.figures.evaluate import matrix, roc_curves, squeezed_gallery
from ddjax.figures.generative import image_rows, training_curves
from ddjax.figures.obfuscated import claims_and_breaks
from ddjax.figures.pictures import class_grid
from ddjax.figures.style import BLUE, GRAY, GREEN, PURPLE, RED, temperature_name, to_png
from ddjax.figures.sweep import CAPTIONS, accuracy_variation, fgsm, gradients, jsma_grid, robustness, success
from ddjax.figures.transfer import transfer_curves

__all__ = [
    "BLUE", "CAPTIONS", "GRAY", "GREEN", "PURPLE", "RED", "accuracy_variation", "brackets", "claims_and_breaks",
    "class_grid", "comparison", "fgsm", "gradients", "growth", "image_rows", "jsma_grid", "matrix", "robustness",
    "roc_curves", "speedups", "squeezed_gallery", "strip", "success", "temperature_name", "to_png", "training_curves",
    "transfer_curves",
]  # fmt: skip
