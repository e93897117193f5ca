"""The gate before registration: rules on evaluate's figures, ``thinks_in_japanese >= 0.95`` or ``right >= base``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ftkit.errors import nearest

MEASURES = (
    *("thinks_in_japanese", "japanese_probability", "parses", "finished", "loops"),
    *("right", "right_number", "thinking_tokens", "tokens"),
)
PASS_AT = re.compile(r"pass@([1-9]\d*)")
"""Name of the figure that one of so many answers is right."""
LM_EVAL = "lm_eval."
"""Begins the names of figures of lm-eval's tasks."""
LM_EVAL_FIGURE = re.compile(r"lm_eval\.[^.]+\.[^.]+")
RULE = re.compile(
    r"^(?P<measure>[\w.@-]*\w) *(?P<compare>>=|<=|>|<) *"
    r"(?:(?P<against>base|adapter)(?: *(?P<margin>[+-] *[\d.]+))?|(?P<value>[\d.]+))$"
)
COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        text: as it was written.
        measure: one of ``MEASURES``, or ``lm_eval.<task>.<metric>``.
        compare: how the merged model's figure is held against the bound.
        against: ``base`` or ``adapter``, whose figure plus ``value`` is the bound; empty where ``value`` itself is.
        value: bound or margin.
    """

    text: str
    measure: str
    compare: str
    against: str
    value: float

    def broken(self, measured: Mapping[str, Any]) -> str:
        """What breaks the rule, in words; empty if it holds.

        Args:
            measured: figures by name of ``merged`` and of ``against``; lm-eval's in a list, ``lm_eval.figures``.
        """
        if not self.of_lm_eval:
            figure = measured["merged"][self.measure]
            other = measured[self.against][self.measure] if self.against else 0
        elif found := by_name(measured).get(self.measure):
            figure, other = found["merged"], found[self.against] if self.against else 0
        else:
            close = nearest(self.measure, by_name(measured))
            return f"{self.text}: lm-eval gave no such figure" + (f"; did you mean {close}?" if close else "")
        if COMPARISONS[self.compare](figure, other + self.value):
            return ""
        digits = 3 if self.of_lm_eval else 2
        has = f", the {self.against} has {other:.{digits}f}" if self.against else ""
        return f"{self.text}: the merged model has {figure:.{digits}f}{has}"

    @property
    def of_lm_eval(self) -> bool:
        """Whether the measure is a figure of one of lm-eval's tasks."""
        return self.measure.startswith(LM_EVAL)


def by_name(measured: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """lm-eval's figures of a result of ``evaluate``, by the names that rules use."""
    return {figure["name"]: figure for figure in measured.get("lm_eval", {}).get("figures", ())}


def parse(text: str) -> Rule:
    """Read a rule.

    Raises:
        ValueError: it is no rule; says what one looks like.
    """
    found = RULE.match(text.strip())
    if found is None:
        raise ValueError("a rule is a measure, one of >= <= > <, and a number, base, adapter, or base - 0.05")
    known_by_form = PASS_AT.fullmatch(found["measure"]) or LM_EVAL_FIGURE.match(found["measure"])
    if found["measure"] not in MEASURES and not known_by_form:
        known = ", ".join((*MEASURES, "pass@<k>", f"{LM_EVAL}<task>.<metric>"))
        raise ValueError(f"no measure {found['measure']!r}; there are {known}")
    number = found["value"] or (found["margin"] or "0").replace(" ", "")
    return Rule(text.strip(), found["measure"], found["compare"], found["against"] or "", float(number))


def broken_guard(may_lose: float, measured: Mapping[str, Any]) -> str:
    """How much more than it may the merged model has lost on the questions of ``evaluation.guard``; empty if it keeps.

    Args:
        may_lose: share of right answers.
        measured: figures of ``base`` and ``merged`` on them, and ``task``, what they are called.
    """
    base, merged = measured["base"]["right"], measured["merged"]["right"]
    if base - merged <= may_lose + 1e-9:
        return ""
    return (
        f"evaluation.guard.may_lose={may_lose:g}: of {measured['task']} the merged model has {merged:.2f} right, "
        f"the base has {base:.2f}"
    )


def broken_rules(rules: Sequence[str], measured: Mapping[str, Any]) -> list[str]:
    """Each rule that does not hold, with the figures that break it."""
    return [said for rule in rules if (said := parse(rule).broken(measured))]
