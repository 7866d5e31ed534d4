"""``--aggregator-param``: the parameters of the aggregation rules, their defaults and limits."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from utils_.errors import UserError
from utils_.params import param, parse_params

FLAG = "--aggregator-param"
MANY = 1_000_000
RANKING = ("median", "trimmed", "krum", "multikrum")  # rules that do not weigh the clients


class Rule:
    """An aggregation rule without parameters."""

    @dataclass(frozen=True)
    class Params:
        """Parameters, each with its meaning and range; a 0 may mean: derived, see the help."""


class Trimmed(Rule):
    """Parameters of ``trimmed``."""

    @dataclass(frozen=True)
    class Params:
        share: float = param(0.0, "cut at each end (default: the share of attackers)", 0, 0.499)


class Krum(Rule):
    """Parameters of ``krum``."""

    @dataclass(frozen=True)
    class Params:
        assumed_attackers: int = param(0, "f (default: --attackers, fewer if none attack)", 0, MANY)


class MultiKrum(Rule):
    """Parameters of ``multikrum``."""

    @dataclass(frozen=True)
    class Params:
        assumed_attackers: int = param(0, "f (default: --attackers, fewer if none attack)", 0, MANY)
        keep: int = param(1, "reports that are averaged (default: n - f - 2)", 1, MANY)


class Geometric(Rule):
    """Parameters of ``geometric``."""

    @dataclass(frozen=True)
    class Params:
        iterations: int = param(100, "most Weiszfeld steps", 1, 100_000)
        smoothing: float = param(1e-6, "least distance that counts", 1e-12, 1)


class Clip(Rule):
    """Parameters of ``clip``."""

    @dataclass(frozen=True)
    class Params:
        radius: float = param(0.0, "longest update; 0: the median of the round's", 0, 1e9)


RULES = {
    "trimmed": Trimmed,
    "krum": Krum,
    "multikrum": MultiKrum,
    "geometric": Geometric,
    "clip": Clip,
}


def parameter_help() -> str:
    """One line on all parameters."""
    return "; ".join(
        f"{name}: " + ", ".join(f"{f.name}, {f.metadata['help']}" for f in fields(rule.Params))
        for name, rule in RULES.items()
    )


def resolve_parameters(
    aggregator: str, given: dict[str, Any], *, reports: int, attackers: int, attacked: bool
) -> dict[str, float]:
    """Check the given parameters and fill in the others.

    Args:
        reports: reports in a round, n.
        attackers: how many are to be withstood.
        attacked: whether they attack. If not, fewer are assumed where n does not allow as many.

    Returns:
        Every parameter of the rule.

    Raises:
        UserError: an unknown parameter, a bad value, or a setting that the rule cannot hold:
            trimmed that cuts everything, krum and multikrum with n < 2f + 3.
    """
    rule = RULES.get(aggregator, Rule)
    values = asdict(parse_params(rule, given, flag=FLAG, kind=f"aggregator ({aggregator})"))
    if rule is Trimmed and "share" not in given:
        assumed = _assumed(attackers, attacked, most=(reports - 1) // 2)
        _check_trimmed(assumed, reports)
        values["share"] = assumed / reports
    if rule in (Krum, MultiKrum):
        if "assumed_attackers" not in given:
            assumed = _assumed(attackers, attacked, most=(reports - 3) // 2)
            values["assumed_attackers"] = assumed
        lever = f"{FLAG} assumed_attackers" if "assumed_attackers" in given else "--attackers"
        _check_krum(aggregator, values["assumed_attackers"], reports, lever=lever)
    if rule is MultiKrum:
        left = reports - values["assumed_attackers"]
        values["keep"] = values["keep"] if "keep" in given else left - 2
        _check_keep(values["keep"], left)
    return values


def _assumed(attackers: int, attacked: bool, *, most: int) -> int:
    return attackers if attacked else max(0, min(attackers, most))


def _check_trimmed(assumed: int, reports: int) -> None:
    if 2 * assumed >= reports:
        raise UserError(
            f"--aggregator trimmed: cutting {assumed} at each end takes more than {2 * assumed} "
            f"reports a round, there are {reports}; let {2 * assumed + 1} --clients report, or "
            f"give at most {(reports - 1) // 2} --attackers"
        )


def _check_krum(aggregator: str, assumed: int, reports: int, *, lever: str) -> None:
    """Refuse too many assumed attackers; ``lever`` is the option that sets them."""
    needed, most = 2 * assumed + 3, (reports - 3) // 2
    if reports < needed:
        fewer = f"give at most {most} as {lever}, " if 0 <= most < assumed else ""
        raise UserError(
            f"--aggregator {aggregator}: withstanding f = {assumed} takes 2f + 3 = {needed} "
            f"reports a round, there are {reports}; let {needed} --clients report, {fewer}or take "
            "another rule such as median"
        )


def _check_keep(keep: int, left: int) -> None:
    if keep > left:
        raise UserError(
            f"{FLAG} keep={keep}: without the assumed attackers {left} reports are left; "
            "give at most that"
        )
