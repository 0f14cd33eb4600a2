import pytest

from ddjax import attacks
from tests.attacks import checks


@pytest.mark.parametrize("name", attacks.ATTACKS)
@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_every_registered_attack_passes(as_a_user, name, check):
    check(attacks.ATTACKS[name])
