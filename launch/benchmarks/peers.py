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
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from ddjax import data, models, runs, training

from .. import recipes

T = TypeVar("T")
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
        records: list[dict[str, Any]] = []
        for name, version in self.versions.items():
            pinned = PINNED[_LIBRARIES.get(name, (name,))[0]]
            records.append({"measure": "peer", "side": name, "version": version, "pinned": pinned})
        for name, reason in self.missing.items():
            records.append({"measure": "peer_missing", "side": name, "error": reason, "command": COMMAND})
            print(f"no comparison with {name}: {reason}", flush=True)
        for record in records:
            if run.find(**record) is None:
                run.append(**record)
        if self.missing:
            print(f"to compare with all: {COMMAND}", flush=True)


def load(cores: int) -> Peers:
    """Imports what is installed.

    Args:
      cores: how many threads PyTorch takes.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        return Peers(None, {}, {"torch": in_a_line(error)} | dict.fromkeys(_LIBRARIES, "it needs PyTorch"))
    torch.set_num_threads(cores)
    # Products as precise as ours.
    precise = jax.config.values["jax_default_matmul_precision"] == "highest"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not precise
    # Another version is told, and good enough: the libraries are what must be the ones that were tried.
    versions, missing = {"torch": importlib.metadata.version("torch")}, {}
    for name, (package, modules) in _LIBRARIES.items():
        try:
            version = importlib.metadata.version(package)
            if version != PINNED[package]:
                raise ImportError(f"{package} {version} is installed, and {PINNED[package]} is what was tried")
            with _stubs(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for module in modules:
                    importlib.import_module(module)
            versions[name] = version
        except Exception as error:  # whatever the import of a broken installation raises
            missing[name] = in_a_line(error)
    return Peers(torch, versions, missing)


def in_a_line(error: Exception) -> str:
    """The first line of what an error says; its type where it says nothing."""
    if isinstance(error, importlib.metadata.PackageNotFoundError):
        return f"{error.name} is not installed"
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextlib.contextmanager
def _stubs() -> Iterator[None]:
    """Empty modules in the place of those that cannot be imported and are never used."""
    made: dict[str, Any] = {}
    for name in _NEVER_USED:
        try:
            importlib.import_module(name)
        except ImportError:
            made[name] = sys.modules[name] = types.ModuleType(name)
    if "torchvision" in made:
        made["torchvision"].models = made["torchvision.models"]
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


def torch_training() -> Any:
    """The module `.torch_training`, which needs PyTorch."""
    return importlib.import_module(".torch_training", __package__)


def cuda() -> Any:
    """The module `torch.cuda` where PyTorch is loaded and computes on a GPU as we do; None elsewhere."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and jax.default_backend() == "gpu" and torch.cuda.is_available() else None


def device() -> str:
    """Where PyTorch computes, `"cpu"` or `"cuda"`."""
    return "cpu" if cuda() is None else "cuda"


def block_until_ready(result: T) -> T:
    """Waits for what PyTorch has started on a GPU, as the function of jax with this name does."""
    if device() == "cuda":
        cuda().synchronize()
    return result


class Network(NamedTuple):
    """A network in PyTorch, where `device` says.

    Attributes:
      module: maps images `[B, C, H, W]` to logits.
      memory_format: one of `torch_training.FORMATS`.
      num_classes: K.
      image_shape: (C, H, W).
    """

    module: Any
    memory_format: str
    num_classes: int
    image_shape: tuple[int, int, int]

    def images(self, images: np.ndarray) -> Any:
        """Images `[B, H, W, C]` as a tensor on the device."""
        return torch_training().to_tensor(images, device(), self.memory_format)

    def classes(self, classes: np.ndarray) -> Any:
        """Labels or targets as a tensor on the device."""
        return torch_training().to_classes(classes, device())


def on_host(images: Any) -> np.ndarray:
    """Images `[B, C, H, W]`, a tensor or an array, as an array `[B, H, W, C]`."""
    array = images if isinstance(images, np.ndarray) else images.detach().cpu().numpy()
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1), np.float32)


def network_fields(network: models.ConvNet) -> dict[str, Any]:
    """The fields of a network, for `torch_training.build`.

    Raises:
      ValueError: for a network that is not built there.
    """
    if network.batch_norm or network.scale != 1 or isinstance(network.center, tuple):
        raise ValueError("the benchmark converts no batch normalization, and no pixels scaled or centered by channel")
    names = ("num_classes", "stages", "dense", "dropout", "feature_dropout", "center", "padding")
    return {name: getattr(network, name) for name in names}


def convert(
    state: training.TrainState, image_shape: tuple[int, int, int], memory_format: str = "contiguous"
) -> Network:
    """The same function in PyTorch: on a GPU where both have one.

    Args:
      state: of a network of `ddjax.models`.
      image_shape: (H, W, C).
      memory_format: one of `torch_training.FORMATS`.

    Returns:
      The network, in evaluation mode and without dropout.
    """
    import torch  # pyright: ignore[reportMissingImports]

    theirs = torch_training()
    network: models.ConvNet = state.network
    params = jax.tree.map(np.asarray, state.params)
    built = theirs.build(network_fields(network), image_shape, device(), memory_format)
    parts = [part for part in built if not isinstance(part, torch.nn.Dropout)]
    names = [f"Conv_{i}" for i in range(sum(map(len, network.stages)))]
    names += [f"Dense_{i}" for i in range(len(network.dense) + 1)]
    channels = image_shape[2]
    with torch.no_grad():
        for part, name in zip((part for part in parts if hasattr(part, "weight")), names, strict=True):
            kernel, bias = params[name]["kernel"], params[name]["bias"]
            if name.startswith("Conv"):
                kernel, channels = kernel.transpose(3, 2, 0, 1), kernel.shape[3]
            elif name == "Dense_0":
                # There the features of an image are in the order of places and channels; here channels come first.
                kernel = kernel.reshape(-1, channels, len(bias)).transpose(2, 1, 0).reshape(len(bias), -1)
            else:
                kernel = kernel.T
            part.weight.copy_(torch.from_numpy(np.ascontiguousarray(kernel)))
            part.bias.copy_(torch.from_numpy(np.array(bias)))
    parts = [theirs.Center(network.center), *parts] if network.center else parts
    module = torch.nn.Sequential(*parts).eval()
    return Network(module, memory_format, network.num_classes, (image_shape[2], *image_shape[:2]))


def training_arguments(recipe: recipes.Recipe, train: data.Dataset, count: int, formatted: str) -> tuple[Any, ...]:
    """What a training step in PyTorch takes: a fresh network, its optimizer, some centered images, one-hot labels."""
    theirs, network = torch_training(), models.build(recipe.network, train.num_classes)
    module = theirs.build(network_fields(network), train.image_shape, device(), formatted)
    images = theirs.to_tensor(data.to_float(train.images[:count]), device(), formatted, network.center)
    targets = theirs.one_hot(train.labels[:count], train.num_classes, device())
    return module, theirs.make_optimizer(module, dataclasses.asdict(recipe)), images, targets


def quickest(calls: Mapping[T, Callable[[], Any]]) -> T:
    """The name of the call that takes least time. All are called in turn; the first time does not count."""
    seconds = dict.fromkeys(calls, math.inf)
    for turn in range(4):
        for name, call in calls.items():
            started = time.perf_counter()
            block_until_ready(call())
            if turn:
                seconds[name] = min(seconds[name], time.perf_counter() - started)
    return min(seconds, key=lambda name: seconds[name])


def fastest(state: training.TrainState, images: np.ndarray, labels: np.ndarray) -> Network:
    """The network in the memory format in which the input gradient of a batch takes less time."""
    theirs = torch_training()
    networks = {name: convert(state, images.shape[1:], name) for name in theirs.FORMATS}

    def gradients(network: Network) -> Callable[[], Any]:
        inputs, classes = network.images(images), network.classes(labels)
        # A single image takes less than a clock should measure.
        count = max(1, 16 // len(images))
        return lambda: [theirs.input_gradient(network.module, inputs, classes) for _ in range(count)]

    return networks[quickest({name: gradients(network) for name, network in networks.items()})]
