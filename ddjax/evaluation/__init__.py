"""Evaluation: what is attacked, by what, within which budget, and what the judge says.

`evaluate` is the one call for most users. Launchers use the parts: `make_attempts`, `parse_attack`, `run_attack` and
`judge`.
"""

from ddjax.evaluation.attempts import TARGETS, Attempts, key_data, make_attempts, resolve_targets
from ddjax.evaluation.budgets import default_budgets, is_within, of_norm
from ddjax.evaluation.judging import Judgement, decisions, judge
from ddjax.evaluation.matrix import Detector, Look, MatrixRow, Verdict, worst_case
from ddjax.evaluation.report import ZERO_SHARE, AttackRow, Report, evaluate
from ddjax.evaluation.running import (
    ConfiguredAttack,
    Outcome,
    check_settings,
    costs,
    parse_attack,
    run_attack,
    settings_of,
)

__all__ = [
    "TARGETS",
    "ZERO_SHARE",
    "AttackRow",
    "Attempts",
    "ConfiguredAttack",
    "Detector",
    "Judgement",
    "Look",
    "MatrixRow",
    "Outcome",
    "Report",
    "Verdict",
    "check_settings",
    "costs",
    "decisions",
    "default_budgets",
    "evaluate",
    "is_within",
    "judge",
    "key_data",
    "make_attempts",
    "of_norm",
    "parse_attack",
    "resolve_targets",
    "run_attack",
    "settings_of",
    "worst_case",
]
