"""What `--help` prints: the flags of a launcher and of all launchers, and the names that flags can take."""

import inspect
import re
import sys
import textwrap
from collections.abc import Iterable

from absl import flags

from ddjax import attacks, defenses, evaluation, registry

from . import recipes
from .recipes import generative as generative_recipes

_WIDTH = 110


def text(flag_values: flags.FlagValues, common: str) -> str:
    """The help of the launcher that runs as `__main__`.

    Args:
      flag_values: the flags.
      common: the name of the module that defines the flags of all launchers.
    """
    main, package = sys.modules["__main__"], common.rpartition(".")[0]
    own, shared = [], []
    for module, defined in flag_values.flags_by_module_dict().items():
        if module == common:
            shared += defined
        elif module == sys.argv[0] or module.startswith(f"{package}."):
            own += defined
    parts = [as_called(inspect.cleandoc(main.__doc__ or ""))]
    parts += [f"Flags of this launcher:\n{_flags(own)}"] * bool(own)
    parts += [f"Flags of all launchers:\n{_flags(shared)}"]
    # The table of `obfuscated` has rows of its own in `--defense`.
    names = {flag.name for flag in own if "name:key=value" in (flag.help or "")} | {"recipe"}
    parts += [part for flag, part in catalogue().items() if flag in names]
    return "\n\n".join(parts)


def catalogue() -> dict[str, str]:
    """What exists, by the flag that takes its name: attacks and defenses with their settings, and recipes."""
    settings = {
        "attack": {name: evaluation.settings_of(attack) for name, attack in attacks.ATTACKS.items()},
        "defense": {name: defense.parameters for name, defense in defenses.DEFENSES.items()},
    }
    found = {}
    for flag, known in settings.items():
        listed = _listed((name, registry.describe(each) if each else "") for name, each in known.items())
        found[flag] = f"{flag.capitalize()}s, --{flag}=NAME:SETTING=VALUE,...:\n{listed}"
    all_recipes = {**recipes.RECIPES, **generative_recipes.RECIPES}
    listed = _listed((name, _sentence(recipe.description)) for name, recipe in all_recipes.items())
    return found | {"recipe": f"Recipes, --recipe=NAME:\n{listed}"}


def as_called(text: str) -> str:
    """A text with the commands that it names as they are called here: an installed package has `ddjax`."""
    return text if __package__ == "launch" else text.replace("python -m launch.", "ddjax ")


def _sentence(text: str) -> str:
    return re.split(r"(?<=[.])\s", " ".join(text.split()))[0]


def _flags(defined: Iterable[flags.Flag]) -> str:
    def described(flag: flags.Flag) -> str:
        choices = getattr(flag.parser, "enum_values", None)
        listed = f" One of {', '.join(choices)}." if choices else ""
        shown = ",".join(flag.default) if isinstance(flag.default, list) else flag.default
        default = "" if shown in (None, "", False) else f" Default: {shown}."
        # absl adds the choices of a flag in front, and that it repeats at the end.
        own = re.sub(r"^<[^>]*>: |;\s+repeat this option.*", "", flag.help or "", flags=re.DOTALL)
        return f"{own}{listed}{default}"

    return _listed((f"--{flag.name}", described(flag)) for flag in sorted(defined, key=lambda flag: flag.name))


def _listed(entries: Iterable[tuple[str, str]]) -> str:
    return "\n".join(
        textwrap.fill(f"{name}: {line}" if line else name, _WIDTH, initial_indent="  ", subsequent_indent="      ")
        for name, line in entries
    )
