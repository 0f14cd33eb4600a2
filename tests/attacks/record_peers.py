"""Records what public implementations of the attacks return, for `test_peers.py`.

The recordings are committed, so neither the tests nor the library need any of this. To make them anew, in an
environment of its own:

    pip install torch==2.13.* foolbox==3.3.4 torchattacks==3.5.1 adv-lib==0.2.8
    pip install --no-deps adversarial-robustness-toolbox==1.20.1
    pip install scikit-learn scipy six tqdm
    python tests/attacks/record_peers.py

or only some of it: `record_peers.py torchattacks foolbox adv_lib art`. It takes some minutes.

The network is fixed: it is trained only where `peers/network.npz` is missing. Its 36 inputs are a 6 x 6 image of one
channel, so that the layouts of PyTorch and JAX are the same. Each further file holds the images that one attack
returned and the settings it was called with.
"""

import pathlib
import sys
import types

import numpy as np
import torch
from torch import nn

DIRECTORY = pathlib.Path(__file__).parent / "peers"
SIDE, CLASSES, HIDDEN, COUNT = 6, 5, 32, 24


def train() -> None:
    """Writes a small dense network, and images it classifies correctly, on the grid of 256 levels."""
    rng = np.random.default_rng(0)
    # Prototypes dark at most places and bright at some, as digits are.
    prototypes = np.clip(1.6 * rng.uniform(size=(CLASSES, SIDE * SIDE)) - 0.6, 0, 1)

    def draw(count):
        labels = rng.integers(0, CLASSES, count)
        images = np.clip(prototypes[labels] + rng.normal(0, 0.35, (count, SIDE * SIDE)), 0, 1)
        return (np.round(255 * images) / 255).astype(np.float32), labels

    torch.manual_seed(0)
    model = dense()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    images, labels = map(torch.from_numpy, draw(2000))
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    images, labels = draw(100)
    decisions = model(torch.from_numpy(images)).argmax(1).numpy()
    print(f"accuracy {np.mean(decisions == labels):.2f}")
    rows = np.flatnonzero(decisions == labels)[:COUNT]
    labels = labels[rows]
    weights = {f"array_{i}": value.detach().numpy() for i, value in enumerate(model.parameters())}
    np.savez_compressed(
        DIRECTORY / "network.npz",
        images=images[rows].reshape(COUNT, SIDE, SIDE, 1),
        labels=labels.astype(np.int32),
        targets=((labels + 1 + np.arange(COUNT) % (CLASSES - 1)) % CLASSES).astype(np.int32),
        **weights,
    )


def dense() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(SIDE * SIDE, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, CLASSES),
    )


def load() -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The network, and images `[B, 1, H, W]`, labels and targets."""
    recorded = np.load(DIRECTORY / "network.npz")
    model = dense()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.from_numpy(recorded[f"array_{i}"]))
    images = torch.from_numpy(recorded["images"]).reshape(COUNT, 1, SIDE, SIDE)
    return model.eval(), images, *(torch.from_numpy(recorded[name]).long() for name in ("labels", "targets"))


def save(name: str, adversarial, **settings) -> None:
    images = np.asarray(adversarial, np.float32).reshape(COUNT, SIDE, SIDE, 1)
    np.savez_compressed(DIRECTORY / f"{name}.npz", adversarial=images, **settings)
    print(name, settings)


def record_torchattacks(model, images, labels, targets) -> None:
    import torchattacks

    for targeted in (False, True):

        def record(name, make, targeted=targeted, **settings):
            attack = make()
            if targeted:
                attack.set_mode_targeted_by_label(quiet=True)
            adversarial = attack(images.clone(), targets if targeted else labels)
            save(f"{name}_{'targeted' if targeted else 'untargeted'}", adversarial.detach(), **settings)

        record("fgsm", lambda: torchattacks.FGSM(model, eps=0.25), epsilon=0.25)
        settings = {"epsilon": 0.25, "step_size": 0.05, "num_steps": 10}
        make = lambda: torchattacks.PGD(model, eps=0.25, alpha=0.05, steps=10, random_start=False)
        record("pgd_linf", make, **settings)
        make = lambda: torchattacks.MIFGSM(model, eps=0.25, alpha=0.05, steps=10, decay=0.9)
        record("mim", make, momentum=0.9, **settings)
        settings = {"epsilon": 1.0, "step_size": 0.2, "num_steps": 10}
        make = lambda: torchattacks.PGDL2(model, eps=1.0, alpha=0.2, steps=10, random_start=False)
        record("pgd_l2", make, **settings)
    attack = torchattacks.JSMA(model, theta=1.0, gamma=0.5)
    attack.set_mode_targeted_by_label(quiet=True)
    save("jsma", attack(images.clone(), targets).detach(), theta=1.0, gamma=0.5)


def record_foolbox(model, images, labels) -> None:
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    for norm, attack in (("l2", foolbox.attacks.L2DeepFoolAttack), ("linf", foolbox.attacks.LinfDeepFoolAttack)):
        adversarial = attack(steps=50, candidates=CLASSES, overshoot=0.02)
        _, clipped, success = adversarial(wrapped, images, labels, epsilons=None)
        print(f"deepfool {norm}: {success.float().mean():.2f}")
        save(f"deepfool_{norm}", clipped, num_steps=50, overshoot=0.02)


def record_adv_lib(model, images, labels, targets) -> None:
    # The package imports these for perceptual distances and plots, which nothing here needs.
    for name in ("torchvision", "torchvision.models", "visdom"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchvision"].models = sys.modules["torchvision.models"]
    from adv_lib.attacks import carlini_wagner_l2, carlini_wagner_linf, ddn

    for targeted in (False, True):
        kind, classes = ("targeted", targets) if targeted else ("untargeted", labels)
        for levels in (256, None):
            adversarial = ddn(model, images, classes, targeted, steps=100, levels=levels)
            name = f"ddn_{kind}" if levels else f"ddn_{kind}_continuous"
            save(name, adversarial, num_steps=100, levels=levels or 0)
        adversarial = carlini_wagner_l2(
            model, images, classes, targeted, learning_rate=0.01, initial_const=1e-3, max_iterations=1000
        )
        save(f"carlini_wagner_l2_{kind}", adversarial, learning_rate=0.01, initial_const=1e-3, num_steps=1000)
        adversarial = carlini_wagner_linf(model, images, classes, targeted, learning_rate=0.01, max_iterations=1000)
        save(f"carlini_wagner_linf_{kind}", adversarial, learning_rate=0.01, num_steps=1000)


def record_art(model, images, targets) -> None:
    from art.attacks.evasion import CarliniL0Method
    from art.estimators.classification import PyTorchClassifier

    # It freezes one value at a time, as many times as an image has rows: a column of pixels has enough.
    shape = (SIDE * SIDE, 1, 1)
    classifier = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), input_shape=shape, nb_classes=CLASSES, clip_values=(0.0, 1.0)
    )
    attack = CarliniL0Method(
        classifier, targeted=True, max_iter=10, binary_search_steps=6, batch_size=COUNT, verbose=False
    )
    one_hot = np.eye(CLASSES, dtype=np.float32)[targets.numpy()]
    adversarial = attack.generate(images.reshape(COUNT, *shape).numpy(), one_hot)
    save("carlini_wagner_l0", adversarial, max_iter=10, binary_search_steps=6)


def main() -> None:
    torch.set_num_threads(1)
    DIRECTORY.mkdir(exist_ok=True)
    if not (DIRECTORY / "network.npz").exists():
        train()
    model, images, labels, targets = load()
    record = {
        "torchattacks": lambda: record_torchattacks(model, images, labels, targets),
        "foolbox": lambda: record_foolbox(model, images, labels),
        "adv_lib": lambda: record_adv_lib(model, images, labels, targets),
        "art": lambda: record_art(model, images, targets),
    }
    for name in sys.argv[1:] or record:
        record[name]()


if __name__ == "__main__":
    main()
