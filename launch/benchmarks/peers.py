"""What the library is compared with: PyTorch, and four libraries of attacks on it, on the same weights.

Nothing of it is needed to use ddjax, and all of it is imported when it is asked for. `load` says what there is.
"""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import math
import sys
import time
import types
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ddjax import models, runs, training

# As in setup.cfg, which says why those after the first are installed without what they ask for.
PINNED = {
    "torch": "2.13.0",
    "foolbox": "3.3.4",
    "torchattacks": "3.5.1",
    "adv-lib": "0.2.8",
    "adversarial-robustness-toolbox": "1.20.1",
}
_PACKAGES = " ".join(f"{name}=={version}" for name, version in PINNED.items() if name != "torch")
COMMAND = f"pip install -e '.[peers]' && pip install --no-deps {_PACKAGES}"
# By the name in results: the package to install, and the modules to import.
_LIBRARIES = {
    "foolbox": ("foolbox", ("foolbox",)),
    "torchattacks": ("torchattacks", ("torchattacks",)),
    "adv_lib": ("adv-lib", ("adv_lib.attacks",)),
    "art": ("adversarial-robustness-toolbox", ("art.estimators.classification", "art.attacks.evasion")),
}
# Imported for pretrained networks and plots only, which nothing here needs.
_NEVER_USED = ("torchvision", "torchvision.models", "visdom")


@dataclasses.dataclass(frozen=True)
class Peers:
    """What there is to compare with.

    Attributes:
      torch: the module, or None.
      versions: of what is there, by name.
      missing: why the others are not, by name.
    """

    torch: Any
    versions: Mapping[str, str]
    missing: Mapping[str, str]

    def has(self, name: str) -> bool:
        """Whether a peer can be called; `batched_torch`, which is written here, needs PyTorch alone."""
        return name in self.versions or (name == "batched_torch" and self.torch is not None)

    def announce(self, run: runs.Run) -> None:
        """Names and records what is there, and what is missing and how to install it."""
        for name, version in self.versions.items():
            record = {"measure": "peer", "side": name, "version": version, "pinned": PINNED[_package(name)]}
            if run.find(**record) is None:
                run.append(**record)
        for name, reason in self.missing.items():
            record = {"measure": "peer_missing", "side": name, "error": reason, "command": COMMAND}
            if run.find(**record) is None:
                run.append(**record)
            print(f"no comparison with {name}: {reason}", flush=True)
        if self.missing:
            print(f"to compare with all: {COMMAND}", flush=True)


def _package(name: str) -> str:
    return "torch" if name == "torch" else _LIBRARIES[name][0]


def load(cores: int) -> Peers:
    """Imports what is installed.

    Args:
      cores: how many threads PyTorch takes.
    """
    versions, missing = {}, {}
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        missing = {"torch": _in_a_line(error)} | dict.fromkeys(_LIBRARIES, "it needs PyTorch")
        return Peers(None, versions, missing)
    # Another version is told, and good enough: the libraries are what must be the ones that were tried.
    versions["torch"] = importlib.metadata.version("torch")
    torch.set_num_threads(cores)
    # Products as precise as ours.
    precise = jax.config.values["jax_default_matmul_precision"] == "highest"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not precise
    for name, (package, modules) in _LIBRARIES.items():
        try:
            version = importlib.metadata.version(package)
            if version != PINNED[package]:
                missing[name] = f"{package} {version} is installed, and {PINNED[package]} is what was tried"
                continue
            with _stubs(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for module in modules:
                    importlib.import_module(module)
            versions[name] = version
        except Exception as error:  # whatever the import of a broken installation raises
            missing[name] = _in_a_line(error)
    return Peers(torch, versions, missing)


def _in_a_line(error: Exception) -> str:
    if isinstance(error, importlib.metadata.PackageNotFoundError):
        return f"{error.name} is not installed"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def _stubs() -> Iterator[None]:
    """Empty modules in the place of those that cannot be imported and are never used."""
    made = []
    for name in _NEVER_USED:
        try:
            importlib.import_module(name)
        except ImportError:
            made.append(name)
            sys.modules[name] = types.ModuleType(name)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, sys.modules[name])
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


class Network(NamedTuple):
    """A network in PyTorch.

    Attributes:
      module: maps images `[B, C, H, W]` to logits.
      device: where it is.
      memory_format: `"contiguous"` or `"channels_last"`.
      num_classes: K.
      image_shape: (C, H, W).
    """

    module: Any
    device: str
    memory_format: str
    num_classes: int
    image_shape: tuple[int, int, int]

    def images(self, images: np.ndarray) -> Any:
        """Images `[B, H, W, C]` as a tensor on the device."""
        import torch  # pyright: ignore[reportMissingImports]

        from . import torch_training

        tensor = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(self.device)
        return tensor.contiguous(memory_format=torch_training.memory_format(self.memory_format))

    def classes(self, classes: np.ndarray) -> Any:
        """Labels or targets as a tensor on the device."""
        import torch  # pyright: ignore[reportMissingImports]

        return torch.from_numpy(classes.astype(np.int64)).to(self.device)


def synchronize() -> None:
    """Waits for what PyTorch has started on a GPU."""
    import torch  # pyright: ignore[reportMissingImports]

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def on_host(images: Any) -> np.ndarray:
    """Images `[B, C, H, W]`, a tensor or an array, as an array `[B, H, W, C]`."""
    array = images if isinstance(images, np.ndarray) else images.detach().cpu().numpy()
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1), np.float32)


def convert(
    state: training.TrainState, image_shape: tuple[int, int, int], memory_format: str = "contiguous"
) -> Network:
    """The same function in PyTorch: on a GPU where both have one.

    Args:
      state: of a network of `ddjax.models`.
      image_shape: (H, W, C).
      memory_format: `"contiguous"` or `"channels_last"`.

    Returns:
      The network, in evaluation mode and without dropout.
    """
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    from . import torch_training

    class Center(nn.Module):
        def __init__(self, center: float) -> None:
            super().__init__()
            self.center = center

        def forward(self, images: Any) -> Any:
            return images - self.center

    network: models.ConvNet = state.network
    if network.batch_norm or network.scale != 1 or isinstance(network.center, tuple):
        raise ValueError("the benchmark converts no batch normalization, and no pixels scaled or centered by channel")
    params = jax.tree.map(np.asarray, state.params)
    height, width, channels = image_shape
    parts: list[Any] = [Center(network.center)] if network.center else []
    number = 0
    lost = 0 if network.padding == "SAME" else 2
    for widths in network.stages:
        for features in widths:
            part = nn.Conv2d(channels, features, 3, padding=1 if network.padding == "SAME" else 0)
            layer = params[f"Conv_{number}"]
            _fill(part, layer["kernel"].transpose(3, 2, 0, 1), layer["bias"])
            parts += [part, nn.ReLU()]
            number, channels, height, width = number + 1, features, height - lost, width - lost
        parts, height, width = [*parts, nn.MaxPool2d(2)], height // 2, width // 2
    parts.append(nn.Flatten())
    inputs = channels * height * width
    for i, features in enumerate((*network.dense, network.num_classes)):
        layer, kernel = params[f"Dense_{i}"], params[f"Dense_{i}"]["kernel"]
        if i == 0:
            # There, the features of an image are in the order of rows, columns and channels; here, channels come first.
            kernel = kernel.reshape(height, width, channels, features).transpose(2, 0, 1, 3).reshape(inputs, features)
        part = nn.Linear(inputs, features)
        _fill(part, kernel.T, layer["bias"])
        parts += [part, nn.ReLU()]
        inputs = features
    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    module = nn.Sequential(*parts[:-1]).eval().to(device)
    module = module.to(memory_format=torch_training.memory_format(memory_format))  # pyright: ignore[reportCallIssue]
    shape = (image_shape[2], image_shape[0], image_shape[1])
    return Network(module, device, memory_format, network.num_classes, shape)


def _fill(part: Any, kernel: np.ndarray, bias: np.ndarray) -> None:
    import torch  # pyright: ignore[reportMissingImports]

    with torch.no_grad():
        part.weight.copy_(torch.from_numpy(np.ascontiguousarray(kernel)))
        part.bias.copy_(torch.from_numpy(np.array(bias)))


def fastest(state: training.TrainState, images: np.ndarray, labels: np.ndarray) -> Network:
    """The network in the memory format in which the input gradient of a batch takes less time."""
    import torch  # pyright: ignore[reportMissingImports]

    seconds: dict[str, float] = {}
    networks = {name: convert(state, images.shape[1:], name) for name in ("contiguous", "channels_last")}
    prepared = {name: (one, one.images(images), one.classes(labels)) for name, one in networks.items()}
    for turn in range(4):
        for name, (network, inputs, classes) in prepared.items():
            started = time.perf_counter()
            # A single image takes less than a clock should measure.
            for _ in range(max(1, 16 // len(images))):
                moved = inputs.clone().requires_grad_()
                loss = torch.nn.functional.cross_entropy(network.module(moved), classes, reduction="sum")
                torch.autograd.grad(loss, moved)
            synchronize()
            if turn:
                seconds[name] = min(seconds.get(name, math.inf), time.perf_counter() - started)
    return networks[min(seconds, key=lambda name: seconds[name])]
