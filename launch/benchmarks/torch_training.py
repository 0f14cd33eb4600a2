"""Training, distillation and the attacks of a sweep in PyTorch, the way one would write them there for speed.

It imports neither jax nor ddjax, so that as a process of its own,
`python -m launch.benchmarks.torch_training DATA.npz SETTINGS.json RESULTS.json`, it does the work of `launch.sweep`
and pays for nothing else: it gets its data as arrays, and writes neither checkpoints nor a report.
"""

import json
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

FORMATS = ("contiguous", "channels_last")


def memory_format(name: str) -> Any:
    """A memory format by name, one of `FORMATS`."""
    return torch.channels_last if name == "channels_last" else torch.contiguous_format


def build(network: Mapping[str, Any], image_shape: tuple[int, int, int], device: str, formatted: str) -> Any:
    """A fresh network, for images from which the center has been subtracted already.

    Args:
      network: the fields of `ddjax.models.ConvNet`.
      image_shape: (H, W, C).
      device: `"cpu"` or `"cuda"`.
      formatted: one of `FORMATS`.

    Returns:
      The module, in training mode; it maps `[B, C, H, W]` to logits.
    """
    height, width, channels = image_shape
    same = network["padding"] == "SAME"
    parts: list[Any] = []
    for widths in network["stages"]:
        for features in widths:
            parts += [nn.Conv2d(channels, features, 3, padding=1 if same else 0), nn.ReLU()]
            channels, height, width = features, height - (0 if same else 2), width - (0 if same else 2)
        parts, height, width = [*parts, nn.MaxPool2d(2)], height // 2, width // 2
    parts, inputs = [*parts, nn.Flatten()], channels * height * width
    for features, rate in zip(network["dense"], network["dropout"], strict=True):
        parts += [nn.Linear(inputs, features), nn.ReLU()]
        parts += [nn.Dropout(rate)] if rate else []
        inputs = features
    parts.append(nn.Linear(inputs, network["num_classes"]))
    for part in parts:
        # Convolutions and dense layers; the others have no parameters.
        for parameter in part.parameters():
            (nn.init.xavier_uniform_ if parameter.ndim > 1 else nn.init.zeros_)(parameter)
    module: Any = nn.Sequential(*parts)
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


def jacobian_by_loop(module: Any, images: Any) -> Any:
    """The Jacobian of the logits `[B, K, C, H, W]`: one forward pass, and a backward pass for each class."""
    moved = images.detach().requires_grad_()
    logits = module(moved)
    last = logits.shape[1] - 1
    rows = [torch.autograd.grad(logits[:, k].sum(), moved, retain_graph=k < last)[0] for k in range(last + 1)]
    return torch.stack(rows, 1)


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


class Sweep:
    """The networks and the measurements of `launch.sweep`."""

    def __init__(self, data: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> None:
        """Puts the data on the device.

        Args:
          data: `train_images`, `train_labels`, `test_images` and `test_labels`; images `[N, H, W, C]` in [0, 1].
          settings: `network`, `recipe`, `temperatures`, `per_class`, `seed`, `threads`, `memory_format`, `device`.
        """
        self._settings, self._recipe, self._network = settings, settings["recipe"], settings["network"]
        self._format, self._device = settings["memory_format"], settings["device"]
        torch.set_num_threads(settings["threads"])
        torch.manual_seed(settings["seed"])
        self._shape = data["train_images"].shape[1:]
        self._train = self._centered(data["train_images"])
        self._test = self._centered(data["test_images"])
        labels = torch.from_numpy(data["train_labels"].astype(np.int64)).to(self._device)
        self._one_hot = nn.functional.one_hot(labels, self._network["num_classes"]).float()
        self._labels = torch.from_numpy(data["test_labels"].astype(np.int64)).to(self._device)
        self._low, self._high = -self._network["center"], 1 - self._network["center"]
        self.seconds = {"training": 0.0, "amplitudes": 0.0, "fgsm": 0.0, "jsma": 0.0}

    def _centered(self, images: np.ndarray) -> Any:
        tensor = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))) - self._network["center"]
        return tensor.to(self._device).contiguous(memory_format=memory_format(self._format))

    def run(self) -> dict[str, Any]:
        """Trains and measures all networks.

        Returns:
          For each, `"none"` or the temperature: accuracy, success of FGSM and JSMA, logarithm of the amplitude.
        """
        baseline = self._fit(self._one_hot, 1.0)
        moved = self._timed("fgsm", self._fgsm, baseline)
        results = {"none": self._measure(baseline, baseline, moved, 1.0)}
        for temperature in self._settings["temperatures"]:
            teacher = self._fit(self._one_hot, temperature)
            student = self._fit(torch.softmax(self._logits(teacher, self._train) / temperature, 1), temperature)
            row = self._measure(student, baseline, moved, temperature)
            results[f"{temperature:g}"] = row | {"teacher_accuracy": self._accuracy(teacher)}
        return results

    def _timed(self, name: str, function: Any, *arguments: Any) -> Any:
        started = time.perf_counter()
        result = function(*arguments)
        if self._device != "cpu":
            torch.cuda.synchronize()
        self.seconds[name] += time.perf_counter() - started
        return result

    def _fit(self, targets: Any, temperature: float) -> Any:
        return self._timed("training", self._fit_now, targets, temperature)

    def _fit_now(self, targets: Any, temperature: float) -> Any:
        module = build(self._network, self._shape, self._device, self._format)
        optimizer = make_optimizer(module, self._recipe)
        for epoch in range(self._recipe["epochs"]):
            size = self._recipe["batch_size"]
            loss = train_epoch(module, optimizer, self._train, targets, temperature, size, self._format)
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss became {loss} in epoch {epoch + 1}")
        return module.eval().requires_grad_(False)

    def _logits(self, module: Any, images: Any) -> Any:
        with torch.no_grad():
            return torch.cat([module(part) for part in images.split(512)])

    def _accuracy(self, module: Any) -> float:
        return float((self._logits(module, self._test).argmax(1) == self._labels).float().mean())

    def _measure(self, module: Any, baseline: Any, moved: Any, temperature: float) -> dict[str, Any]:
        correct = self._logits(module, self._test).argmax(1) == self._labels
        zero, log10 = self._timed("amplitudes", self._amplitude, module)
        row = {"accuracy": float(correct.float().mean()), "zero_gradient_share": zero, "log10_amplitude": log10}
        own = moved if module is baseline else self._timed("fgsm", self._fgsm, module)
        for name, images in (("fgsm", own), ("fgsm_transfer", moved)):
            fooled = self._logits(module, images).argmax(1) != self._labels
            row[name] = float(fooled[correct].float().mean())
        row["jsma_probs"] = row["jsma_tempered"] = self._timed("jsma", self._jsma_success, module, correct, 1.0)
        if temperature != 1.0:
            row["jsma_tempered"] = self._timed("jsma", self._jsma_success, module, correct, temperature)
        return row

    def _amplitude(self, module: Any) -> tuple[float, float]:
        """The share of examples whose Jacobian of probabilities is zero, and the mean logarithm of its amplitude."""
        zeros, logarithms = [], []
        for images in self._test.split(128):
            logits = self._logits(module, images)
            of_logits = jacobian_by_loop(module, images).flatten(2)
            probs = torch.softmax(logits, 1)
            of_probs = probs[:, :, None] * (of_logits - torch.einsum("bl,bld->bd", probs, of_logits)[:, None])
            zeros.append((of_probs == 0).all(2).all(1))
            log_probs = torch.log_softmax(logits, 1)
            own = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
            others = log_probs[:, None, :].masked_fill(own, -math.inf)
            largest = others.amax(2)
            weights = torch.exp(others - largest[:, :, None])
            differences = weights.sum(2)[:, :, None] * of_logits - torch.einsum("bil,bld->bid", weights, of_logits)
            scale = differences.abs().amax(2)
            relative = differences.abs() / torch.where(scale > 0, scale, 1.0)[:, :, None]
            sums = log_probs + largest + torch.log(scale) + torch.log(relative.sum(2).clamp(min=1.0))
            entries = of_logits.shape[1] * of_logits.shape[2]
            logarithms.append((torch.logsumexp(sums, 1) - math.log(entries)) / math.log(10))
        found = torch.cat(logarithms)
        return float(torch.cat(zeros).float().mean()), float(found[torch.isfinite(found)].mean())

    def _fgsm(self, module: Any) -> Any:
        moved = self._test.detach().requires_grad_()
        loss = nn.functional.cross_entropy(module(moved), self._labels, reduction="sum")
        (slope,) = torch.autograd.grad(loss, moved)
        return (self._test + self._recipe["fgsm_epsilon"] * slope.sign()).clamp(self._low, self._high)

    def _jsma_success(self, module: Any, correct: Any, temperature: float) -> float:
        """The success of JSMA on correct images, a few of each class, towards all other classes."""
        classes = self._network["num_classes"]
        sources = [
            torch.nonzero(correct & (self._labels == label))[: self._settings["per_class"], 0]
            for label in range(classes)
        ]
        rows = torch.cat(sources).repeat_interleave(classes)
        targets = torch.arange(classes, device=rows.device).repeat(len(rows) // classes)
        other = targets != self._labels[rows]
        rows, targets = rows[other], targets[other]
        parts = zip(rows.split(512), targets.split(512), strict=True)
        images = torch.cat([self._jsma(module, self._test[some], goal, temperature) for some, goal in parts])
        return float((self._logits(module, images).argmax(1) == targets).float().mean())

    def _jsma(self, module: Any, images: Any, targets: Any, temperature: float) -> Any:
        """JSMA on tempered probabilities, all examples at once, and those that are done no longer.

        Probabilities sum to one, so the best pair is that of the two largest slopes of the target's: one backward pass.
        """
        shape, images = images.shape, images.clone(memory_format=torch.contiguous_format).flatten(1)
        # As ours, without what is nearly at the bound.
        unused = images < self._high - 0.01
        live = torch.arange(len(images), device=images.device)
        for step in range(self._recipe["jsma_features"] // 2 + 1):
            at = images[live].reshape(-1, *shape[1:]).contiguous(memory_format=memory_format(self._format))
            at.requires_grad_()
            logits = module(at)
            left = logits.argmax(1) != targets[live]
            if step == self._recipe["jsma_features"] // 2 or not bool(left.any()):
                break
            chosen = torch.softmax(logits / temperature, 1).gather(1, targets[live, None]).sum()
            slope = torch.autograd.grad(chosen, at)[0].flatten(1).masked_fill(~unused[live], -math.inf)
            values, pair = slope.topk(2, 1)
            moves = left & (values.sum(1) > 0)
            live, pair = live[moves], pair[moves]
            if len(live) == 0:
                break
            images[live[:, None], pair] = self._high
            unused[live[:, None], pair] = False
        return images.reshape(shape).contiguous(memory_format=memory_format(self._format))


def main(data_path: str, settings_path: str, results_path: str) -> None:
    """Does a sweep and writes what it found, and where its seconds went."""
    with open(settings_path) as file:
        settings = json.load(file)
    with np.load(data_path) as data:
        sweep = Sweep(dict(data), settings)
    results = sweep.run()
    with open(results_path, "w") as file:
        json.dump({"results": results, "seconds": sweep.seconds}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
