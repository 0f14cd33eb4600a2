"""Networks, training, Jacobians, JSMA and a whole sweep in PyTorch, the way one would write them there for speed.

It imports neither jax nor ddjax, so that as a process of its own,
`python -m launch.benchmarks.torch_training DATA.npz SETTINGS.json RESULTS.json`, it does the work of `launch.sweep`
and pays for nothing else: it gets its data as arrays, and writes neither checkpoints nor a report.
"""

import contextlib
import functools
import json
import math
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

FORMATS = ("contiguous", "channels_last")


def memory_format(name: str) -> Any:
    """A memory format by name, one of `FORMATS`."""
    return torch.channels_last if name == "channels_last" else torch.contiguous_format


def to_tensor(images: np.ndarray, device: str, formatted: str, center: float = 0.0) -> Any:
    """Images `[N, H, W, C]` as a tensor `[N, C, H, W]`, from which a number is subtracted."""
    tensor = torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), np.float32, order="C")) - center
    return tensor.to(device).contiguous(memory_format=memory_format(formatted))


def to_classes(classes: np.ndarray, device: str) -> Any:
    """Class numbers as a tensor."""
    return torch.from_numpy(classes.astype(np.int64)).to(device)


def one_hot(classes: np.ndarray, num_classes: int, device: str) -> Any:
    """Class numbers as distributions, `[N, K]`."""
    return nn.functional.one_hot(to_classes(classes, device), num_classes).float()


class Center(nn.Module):
    """Subtracts a number."""

    def __init__(self, center: float) -> None:
        super().__init__()
        self.center = center

    def forward(self, images: Any) -> Any:
        """Images, centered."""
        return images - self.center


def build(network: Mapping[str, Any], image_shape: tuple[int, int, int], device: str, formatted: str) -> Any:
    """A fresh network in training mode, for images `[B, C, H, W]` from which the center has been subtracted already.

    Args:
      network: the fields of `ddjax.models.ConvNet`.
      image_shape: (H, W, C).
      device: `"cpu"` or `"cuda"`.
      formatted: one of `FORMATS`.
    """
    height, width, channels = image_shape
    padding = 1 if network["padding"] == "SAME" else 0
    parts: list[Any] = []
    for widths in network["stages"]:
        for features in widths:
            parts += [nn.Conv2d(channels, features, 3, padding=padding), nn.ReLU()]
            channels, height, width = features, height - 2 + 2 * padding, width - 2 + 2 * padding
        parts, height, width = [*parts, nn.MaxPool2d(2)], height // 2, width // 2
    dropout = lambda rate: [nn.Dropout(rate)] if rate else []
    parts, inputs = [*parts, nn.Flatten(), *dropout(network["feature_dropout"])], channels * height * width
    for features, rate in zip(network["dense"], network["dropout"], strict=True):
        parts, inputs = [*parts, nn.Linear(inputs, features), nn.ReLU(), *dropout(rate)], features
    module: Any = nn.Sequential(*parts, nn.Linear(inputs, network["num_classes"]))
    for parameter in module.parameters():
        # Of convolutions and dense layers; the others have none.
        (nn.init.xavier_uniform_ if parameter.ndim > 1 else nn.init.zeros_)(parameter)
    return module.to(device).to(memory_format=memory_format(formatted))


def make_optimizer(module: Any, recipe: Mapping[str, Any]) -> Any:
    """The optimizer of a recipe, at its first learning rate; the schedules of some recipes cost nothing to speak of."""
    if recipe["optimizer"] == "adam":
        # One kernel for all parameters, where there is one; faster than the default on CPU, too.
        return torch.optim.Adam(module.parameters(), recipe["learning_rate"], fused=True)
    momentum, nesterov = recipe["momentum"], recipe["nesterov"]
    return torch.optim.SGD(module.parameters(), recipe["learning_rate"], momentum, nesterov=nesterov)


def train_step(module: Any, optimizer: Any, images: Any, targets: Any, temperature: float) -> Any:
    """One optimizer step on the mean cross-entropy of `softmax(logits / temperature)`; the loss, not waited for."""
    optimizer.zero_grad(set_to_none=True)
    loss = nn.functional.cross_entropy(module(images) / temperature, targets)
    loss.backward()
    optimizer.step()
    return loss.detach()


def train_epoch(
    module: Any, optimizer: Any, images: Any, targets: Any, temperature: float, batch_size: int, formatted: str
) -> float:
    """An epoch in a random order; a last smaller batch is left out. The mean loss."""
    order = torch.randperm(len(images), device=images.device)
    losses = []
    for rows in order[: len(images) // batch_size * batch_size].split(batch_size):
        batch = images[rows].contiguous(memory_format=memory_format(formatted))
        losses.append(train_step(module, optimizer, batch, targets[rows], temperature))
    # The only place where the host waits.
    return float(torch.stack(losses).mean())


def input_gradient(module: Any, images: Any, labels: Any) -> Any:
    """The gradient of the cross-entropy."""
    moved = images.detach().requires_grad_()
    loss = nn.functional.cross_entropy(module(moved), labels, reduction="sum")
    return torch.autograd.grad(loss, moved)[0]


def _slopes(logits: Any, images: Any) -> Any:
    """The Jacobian `[B, K, C, H, W]`: a backward pass for each class."""
    last = logits.shape[1] - 1
    rows = [torch.autograd.grad(logits[:, k].sum(), images, retain_graph=k < last)[0] for k in range(last + 1)]
    return torch.stack(rows, 1)


def jacobian_by_loop(module: Any, images: Any) -> Any:
    """The Jacobian of the logits `[B, K, C, H, W]`: one forward pass, and a backward pass for each class."""
    moved = images.detach().requires_grad_()
    return _slopes(module(moved), moved)


def jacobian_by_vmap(module: Any, images: Any) -> Any:
    """The same: one forward pass, and all backward passes as one batch."""
    found: Any = torch.func.vjp(module, images)
    logits, pull_back = found
    batch, classes = logits.shape
    units = torch.eye(classes, device=images.device)[:, None, :].expand(classes, batch, classes)
    return torch.func.vmap(lambda unit: pull_back(unit)[0])(units).transpose(0, 1)


def jacobian_by_jacrev(module: Any, images: Any) -> Any:
    """The same, as the documentation writes it: the Jacobian of an example, for each of the batch."""
    return torch.func.vmap(torch.func.jacrev(lambda image: module(image[None])[0]))(images)


def jsma(
    module: Any, images: Any, targets: Any, find_pair: Any, theta: float, num_pairs: int, formatted: str, center: float
) -> Any:
    """JSMA on all examples at once, and on those that are done no longer; returns the adversarial images.

    At most `num_pairs` pairs of features change, by `theta` each. Images are in [0, 1] before `center` is subtracted.
    `find_pair` takes images, logits, targets, unused features `[B, D]`, and which examples have not reached their
    target. For these it returns the best pairs and their scores.
    """
    shape, images = images.shape, images.clone(memory_format=torch.contiguous_format).flatten(1)
    # As ours, without what is nearly at the bound.
    unused = images < 1 - center - 0.01
    live = torch.arange(len(images), device=images.device)
    for _ in range(num_pairs):
        inputs = images[live].reshape(-1, *shape[1:]).contiguous(memory_format=memory_format(formatted))
        inputs.requires_grad_()
        logits = module(inputs)
        left = logits.argmax(1) != targets[live]
        if not left.any():
            break
        pair, score = find_pair(inputs, logits, targets[live], unused[live], left)
        live, pair = live[left][score > 0], pair[score > 0]
        if len(live) == 0:
            break
        images[live[:, None], pair] = (images[live[:, None], pair] + theta).clamp(-center, 1 - center)
        unused[live[:, None], pair] = False
    return images.reshape(shape).contiguous(memory_format=memory_format(formatted))


def best_pair_of_logits(inputs: Any, logits: Any, targets: Any, unused: Any, left: Any) -> Any:
    """The whole Jacobian, and the table of all pairs."""
    slopes, targets, unused = _slopes(logits, inputs).flatten(2)[left], targets[left], unused[left]
    rows, features = torch.arange(len(slopes), device=slopes.device), slopes.shape[2]
    target = slopes[rows, targets]
    others = slopes.sum(1) - target
    # The diagonal: a feature is no pair with itself.
    single = torch.eye(features, dtype=torch.bool, device=slopes.device)
    found = []
    # The tables of a few images at a time: all of them together would take gigabytes.
    for part in rows.split(16):
        alpha = target[part, :, None] + target[part, None, :]
        beta = others[part, :, None] + others[part, None, :]
        counts = (alpha > 0) & (beta < 0) & unused[part, :, None] & unused[part, None, :] & ~single
        found.append(torch.where(counts, -alpha * beta, 0).flatten(1).max(1))
    score, pair = (torch.cat(values) for values in zip(*found, strict=True))
    return torch.stack([pair // features, pair % features], 1), score


def best_pair_of_probabilities(
    temperature: float, inputs: Any, logits: Any, targets: Any, unused: Any, left: Any
) -> Any:
    """Probabilities sum to one, so the best pair is that of the target's two largest slopes: one backward pass."""
    chosen = torch.softmax(logits / temperature, 1).gather(1, targets[:, None]).sum()
    slope = torch.autograd.grad(chosen, inputs)[0].flatten(1).masked_fill(~unused, -math.inf)
    values, pair = slope[left].topk(2, 1)
    return pair, values.sum(1)


class Sweep:
    """The networks and the measurements of `launch.sweep`."""

    def __init__(self, data: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> None:
        """Puts the data on the device; `sweeps` says what `data` and `settings` have."""
        self._settings, self._recipe, self._network = settings, settings["recipe"], settings["network"]
        self._format, self._device = settings["memory_format"], settings["device"]
        torch.set_num_threads(settings["threads"])
        torch.manual_seed(settings["seed"])
        self._shape, self._center = data["train_images"].shape[1:], self._network["center"]
        self._train, self._test = (
            to_tensor(data[f"{split}_images"], self._device, self._format, self._center) for split in ("train", "test")
        )
        self._one_hot = one_hot(data["train_labels"], self._network["num_classes"], self._device)
        self._labels = to_classes(data["test_labels"], self._device)
        self.seconds = {"training": 0.0, "amplitudes": 0.0, "fgsm": 0.0, "jsma": 0.0}

    def run(self) -> dict[str, Any]:
        """Trains and measures all networks; the measurements by temperature, `"none"` for the baseline."""
        baseline = self._fit(self._one_hot, 1.0)
        moved = self._fgsm(baseline)
        results = {"none": self._measure(baseline, 1.0, moved, moved)}
        for temperature in self._settings["temperatures"]:
            teacher = self._fit(self._one_hot, temperature)
            student = self._fit(torch.softmax(self._logits(teacher, self._train) / temperature, 1), temperature)
            row = self._measure(student, temperature, self._fgsm(student), moved)
            row["teacher_accuracy"] = float(self._correct(teacher, self._test).float().mean())
            results[f"{temperature:g}"] = row
        return results

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if self._device != "cpu":
            torch.cuda.synchronize()
        self.seconds[name] += time.perf_counter() - started

    def _fit(self, targets: Any, temperature: float) -> Any:
        with self._timed("training"):
            module = build(self._network, self._shape, self._device, self._format)
            optimizer, size = make_optimizer(module, self._recipe), self._recipe["batch_size"]
            for epoch in range(self._recipe["epochs"]):
                loss = train_epoch(module, optimizer, self._train, targets, temperature, size, self._format)
                if not math.isfinite(loss):
                    raise FloatingPointError(f"the loss became {loss} in epoch {epoch + 1}")
            return module.eval().requires_grad_(False)

    def _logits(self, module: Any, images: Any) -> Any:
        with torch.no_grad():
            return torch.cat([module(part) for part in images.split(512)])

    def _correct(self, module: Any, images: Any) -> Any:
        return self._logits(module, images).argmax(1) == self._labels

    def _fgsm(self, module: Any) -> Any:
        with self._timed("fgsm"):
            step = self._recipe["fgsm_epsilon"] * input_gradient(module, self._test, self._labels).sign()
            return (self._test + step).clamp(-self._center, 1 - self._center)

    def _measure(self, module: Any, temperature: float, own: Any, moved: Any) -> dict[str, Any]:
        """A network, its own images of FGSM, and those of the baseline."""
        correct = self._correct(module, self._test)
        row = {"accuracy": float(correct.float().mean())} | self._amplitude(module)
        for name, images in (("fgsm", own), ("fgsm_transfer", moved)):
            row[name] = float((~self._correct(module, images))[correct].float().mean())
        row["jsma"] = row["jsma_tempered"] = self._jsma(module, correct, 1.0)
        if temperature != 1.0:
            row["jsma_tempered"] = self._jsma(module, correct, temperature)
        return row

    def _amplitude(self, module: Any) -> dict[str, float]:
        """The share of examples whose Jacobian of probabilities is zero, and the mean logarithm of its amplitude."""
        zeros, logarithms = [], []
        with self._timed("amplitudes"):
            for images in self._test.split(128):
                logits = self._logits(module, images)
                of_logits = jacobian_by_loop(module, images).flatten(2)
                probs, log_probs = torch.softmax(logits, 1), torch.log_softmax(logits, 1)
                of_probs = probs[:, :, None] * (of_logits - torch.einsum("bl,bld->bd", probs, of_logits)[:, None])
                zeros.append((of_probs == 0).all(2).all(1))
                own = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
                others = log_probs[:, None, :].masked_fill(own, -math.inf)
                largest = others.amax(2)
                weights = torch.exp(others - largest[:, :, None])
                differences = weights.sum(2)[:, :, None] * of_logits - torch.einsum("bil,bld->bid", weights, of_logits)
                sums = log_probs + largest + torch.log(differences.abs().sum(2))
                entries = of_logits.shape[1] * of_logits.shape[2]
                logarithms.append((torch.logsumexp(sums, 1) - math.log(entries)) / math.log(10))
            log10 = torch.cat(logarithms)
            share = float(torch.cat(zeros).float().mean())
            return {"zero_gradient_share": share, "log10_amplitude": float(log10[torch.isfinite(log10)].mean())}

    def _jsma(self, module: Any, correct: Any, temperature: float) -> float:
        """The success of JSMA on correct images, a few of each class, towards all other classes."""
        classes, count = self._network["num_classes"], self._settings["per_class"]
        find_pair = functools.partial(best_pair_of_probabilities, temperature)
        settings = {"theta": 1.0, "num_pairs": self._recipe["jsma_features"] // 2, "formatted": self._format}
        with self._timed("jsma"):
            sources = [torch.nonzero(correct & (self._labels == label))[:count, 0] for label in range(classes)]
            rows = torch.cat(sources).repeat_interleave(classes)
            targets = torch.arange(classes, device=rows.device).repeat(len(rows) // classes)
            other = targets != self._labels[rows]
            reached = []
            for some, goals in zip(rows[other].split(512), targets[other].split(512), strict=True):
                images = jsma(module, self._test[some], goals, find_pair, center=self._center, **settings)
                reached.append(self._logits(module, images).argmax(1) == goals)
            return float(torch.cat(reached).float().mean())


def main(data_path: str, settings_path: str, results_path: str) -> None:
    """Does a sweep and writes what it found, and where its seconds went."""
    settings = json.loads(pathlib.Path(settings_path).read_text())
    with np.load(data_path) as data:
        sweep = Sweep(data, settings)
    found = {"results": sweep.run(), "seconds": sweep.seconds}
    pathlib.Path(results_path).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
