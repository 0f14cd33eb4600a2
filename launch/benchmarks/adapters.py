"""How each peer's attacks are called, with the settings that ours have."""

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .peers import Network

# Called with images `[B, C, H, W]`, labels and targets, all tensors; returns the adversarial images.
Call = Callable[[Any, Any, Any], Any]


class Adapter(NamedTuple):
    """How a peer's attack is called.

    Attributes:
      make: makes the call, of a network and the settings, which have the names of ours.
      note: what is not equal.
      most: how many examples it is given at most, because it is slow.
    """

    make: Callable[[Network, Mapping[str, Any]], Call]
    note: str = ""
    most: int | None = None


def _foolbox(make: Callable[[Any, Mapping[str, Any]], Any], radius: bool = False, targeted: bool = False) -> Any:
    def adapter(network: Network, settings: Mapping[str, Any]) -> Call:
        import foolbox  # pyright: ignore[reportMissingImports]

        wrapped = foolbox.PyTorchModel(network.module, bounds=(0, 1), device=network.device)
        attack = make(foolbox.attacks, settings)
        epsilons = settings["epsilon"] if radius else None
        criterion = foolbox.criteria.TargetedMisclassification if targeted else foolbox.criteria.Misclassification
        return lambda images, labels, targets: attack(
            wrapped, images, criterion(targets if targeted else labels), epsilons=epsilons
        )[1]

    return adapter


def _torchattacks(make: Callable[[Any, Any, Mapping[str, Any]], Any], targeted: bool = False) -> Any:
    def adapter(network: Network, settings: Mapping[str, Any]) -> Call:
        import torchattacks  # pyright: ignore[reportMissingImports]

        attack = make(torchattacks, network.module, settings)
        if targeted:
            attack.set_mode_targeted_by_label(quiet=True)
        return lambda images, labels, targets: attack(images, targets if targeted else labels)

    return adapter


def _adv_lib(name: str, make: Callable[[Mapping[str, Any]], dict[str, Any]], targeted: bool = False) -> Any:
    def adapter(network: Network, settings: Mapping[str, Any]) -> Call:
        attack, keywords = getattr(importlib.import_module("adv_lib.attacks"), name), make(settings)
        return lambda images, labels, targets: attack(
            network.module, images, targets if targeted else labels, targeted=targeted, **keywords
        )

    return adapter


def _art(make: Callable[[Any, Any, Mapping[str, Any]], Any], targeted: bool = False) -> Any:
    def adapter(network: Network, settings: Mapping[str, Any]) -> Call:
        from art.attacks import evasion  # pyright: ignore[reportMissingImports]
        from art.estimators.classification import PyTorchClassifier  # pyright: ignore[reportMissingImports]
        from torch import nn  # pyright: ignore[reportMissingImports]

        classifier = PyTorchClassifier(
            network.module,
            nn.CrossEntropyLoss(),
            input_shape=network.image_shape,
            nb_classes=network.num_classes,
            clip_values=(0.0, 1.0),
            device_type="gpu" if network.device == "cuda" else "cpu",
        )
        attack = make(evasion, classifier, settings)
        # It takes arrays on the host and gives them back; what that costs is a part of it.
        return lambda images, labels, targets: attack.generate(
            images.cpu().numpy(), (targets if targeted else labels).cpu().numpy()
        )

    return adapter


def _batched_jsma(network: Network, settings: Mapping[str, Any]) -> Call:
    """JSMA on logits as one would write it in PyTorch: the whole Jacobian, and the table of all pairs."""
    import torch  # pyright: ignore[reportMissingImports]

    def call(images: Any, labels: Any, targets: Any) -> Any:
        del labels
        shape, count = images.shape, len(images)
        moved = images.flatten(1).clone()
        # Ours and torchattacks leave out what is nearly at the bound.
        unused = moved < 0.99
        live = torch.arange(count, device=images.device)
        num_features = moved.shape[1]
        # The diagonal: a feature is no pair with itself.
        single = torch.eye(num_features, dtype=torch.bool, device=images.device)
        for step in range(int(settings["gamma"] * num_features / 2 + 1e-3) + 1):
            inputs = moved[live].reshape(-1, *shape[1:]).requires_grad_()
            logits = network.module(inputs)
            keep = logits.argmax(1) != targets[live]
            if step > int(settings["gamma"] * num_features / 2 + 1e-3) - 1 or not keep.any():
                break
            jacobian = torch.stack(
                [
                    torch.autograd.grad(logits[:, k].sum(), inputs, retain_graph=True)[0].flatten(1)
                    for k in range(logits.shape[1])
                ],
                1,
            )
            jacobian, live = jacobian[keep], live[keep]
            rows = torch.arange(len(live), device=images.device)
            target = jacobian[rows, targets[live]]
            others = jacobian.sum(1) - target
            found = []
            # The tables of a few images at a time: all of them together would take gigabytes.
            for part in rows.split(16):
                alpha = target[part, :, None] + target[part, None, :]
                beta = others[part, :, None] + others[part, None, :]
                free = unused[live[part]]
                counts = (alpha > 0) & (beta < 0) & free[:, :, None] & free[:, None, :] & ~single
                found.append(torch.where(counts, -alpha * beta, 0).flatten(1).max(1))
            score, pair = (torch.cat(values) for values in zip(*found, strict=True))
            live, pair = live[score > 0], pair[score > 0]
            if len(live) == 0:
                break
            for feature in (pair // num_features, pair % num_features):
                moved[live, feature] = (moved[live, feature] + settings["theta"]).clamp(0, 1)
                unused[live, feature] = False
        return moved.reshape(shape)

    return call


_SAME_STEPS = {
    "foolbox": Adapter(
        _foolbox(
            lambda attacks, s: attacks.L2CarliniWagnerAttack(
                binary_search_steps=s["search_steps"],
                steps=s["num_steps"],
                stepsize=s["learning_rate"],
                initial_const=s["initial_const"],
                abort_early=s["abort_early"],
            ),
            targeted=True,
        ),
        most=32,
    ),
    "adv_lib": Adapter(
        _adv_lib(
            "carlini_wagner_l2",
            lambda s: {
                "binary_search_steps": s["search_steps"],
                "max_iterations": s["num_steps"],
                "learning_rate": s["learning_rate"],
                "initial_const": s["initial_const"],
                "abort_early": s["abort_early"],
            },
            targeted=True,
        )
    ),
}
# By attack and peer.
ADAPTERS: dict[str, dict[str, Adapter]] = {
    "fgsm": {
        "foolbox": Adapter(_foolbox(lambda attacks, s: attacks.LinfFastGradientAttack(), radius=True)),
        "torchattacks": Adapter(_torchattacks(lambda library, model, s: library.FGSM(model, eps=s["epsilon"]))),
        "art": Adapter(
            _art(lambda evasion, c, s: evasion.FastGradientMethod(c, eps=s["epsilon"], batch_size=s["batch"]))
        ),
    },
    "pgd": {
        "foolbox": Adapter(
            _foolbox(
                lambda attacks, s: attacks.LinfProjectedGradientDescentAttack(
                    abs_stepsize=s["step_size"], steps=s["num_steps"], random_start=True
                ),
                radius=True,
            )
        ),
        "torchattacks": Adapter(
            _torchattacks(
                lambda library, model, s: library.PGD(
                    model, eps=s["epsilon"], alpha=s["step_size"], steps=s["num_steps"], random_start=True
                )
            )
        ),
        "adv_lib": Adapter(
            _adv_lib(
                "pgd_linf",
                lambda s: {"ε": s["epsilon"], "steps": s["num_steps"], "absolute_step_size": s["step_size"]},
            )
        ),
        "art": Adapter(
            _art(
                lambda evasion, c, s: evasion.ProjectedGradientDescentPyTorch(
                    c,
                    eps=s["epsilon"],
                    eps_step=s["step_size"],
                    max_iter=s["num_steps"],
                    num_random_init=1,
                    batch_size=s["batch"],
                    verbose=False,
                )
            )
        ),
    },
    "ddn": {
        "foolbox": Adapter(
            _foolbox(lambda attacks, s: attacks.DDNAttack(steps=s["num_steps"])), note="does not round to 256 levels"
        ),
        "adv_lib": Adapter(_adv_lib("ddn", lambda s: {"steps": s["num_steps"]})),
    },
    "carlini_wagner_l2": _SAME_STEPS,
    "carlini_wagner_l2_compacted": _SAME_STEPS
    | {
        "torchattacks": Adapter(
            _torchattacks(
                lambda library, model, s: library.CW(model, c=1.0, steps=s["num_steps"], lr=s["learning_rate"]),
                targeted=True,
            ),
            note="computes less: one constant, no search",
        ),
        "art": Adapter(
            _art(
                lambda evasion, c, s: evasion.CarliniL2Method(
                    c,
                    targeted=True,
                    learning_rate=s["learning_rate"],
                    binary_search_steps=s["search_steps"],
                    max_iter=s["num_steps"],
                    initial_const=s["initial_const"],
                    batch_size=s["batch"],
                    verbose=False,
                ),
                targeted=True,
            ),
            note="a line search in the place of Adam",
            most=2,
        ),
    },
    "carlini_wagner_linf": {
        "adv_lib": Adapter(
            _adv_lib(
                "carlini_wagner_linf",
                lambda s: {
                    "learning_rate": s["learning_rate"],
                    "max_iterations": s["num_steps"],
                    "decrease_factor": s["decrease_factor"],
                },
                targeted=True,
            ),
            note="its own first constant, in other units",
            most=8,
        ),
        "art": Adapter(
            _art(
                lambda evasion, c, s: evasion.CarliniLInfMethod(
                    c,
                    targeted=True,
                    learning_rate=s["learning_rate"],
                    max_iter=s["num_steps"],
                    decrease_factor=s["decrease_factor"],
                    batch_size=s["batch"],
                    verbose=False,
                ),
                targeted=True,
            ),
            note="its own first constant, in other units",
            most=2,
        ),
    },
    "jsma": {
        "torchattacks": Adapter(
            _torchattacks(
                lambda library, model, s: library.JSMA(model, theta=s["theta"], gamma=s["gamma"]), targeted=True
            ),
            note="one image at a time",
            most=8,
        ),
        "batched_torch": Adapter(_batched_jsma, most=32),
        "art": Adapter(
            _art(
                # It goes on while the share is not above gamma, so that a pair more is changed; half a feature is for
                # rounding.
                lambda evasion, c, s: evasion.SaliencyMapMethod(
                    c,
                    theta=s["theta"],
                    gamma=s["gamma"] - 1.5 / math.prod(c.input_shape),
                    batch_size=s["batch"],
                    verbose=False,
                ),
                targeted=True,
            ),
            note="computes less: the target's gradient alone, and no pairs",
        ),
    },
    "deepfool": {
        "foolbox": Adapter(
            _foolbox(
                lambda attacks, s: attacks.L2DeepFoolAttack(
                    steps=s["num_steps"], candidates=None, overshoot=s["overshoot"]
                )
            )
        ),
        "adv_lib": Adapter(
            _adv_lib(
                "df", lambda s: {"steps": s["num_steps"], "overshoot": s["overshoot"], "return_unsuccessful": True}
            )
        ),
        "torchattacks": Adapter(
            _torchattacks(
                lambda library, model, s: library.DeepFool(model, steps=s["num_steps"], overshoot=s["overshoot"])
            ),
            note="one image at a time",
            most=16,
        ),
        "art": Adapter(
            _art(
                lambda evasion, c, s: evasion.DeepFool(
                    c,
                    max_iter=s["num_steps"],
                    epsilon=s["overshoot"],
                    nb_grads=c.nb_classes,
                    batch_size=s["batch"],
                    verbose=False,
                )
            )
        ),
    },
}
