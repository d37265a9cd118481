"""The protocols of SPEC.md, section 16, in all interleavings: `tools/check-model` runs the long scenarios too."""

import dataclasses

import pytest
from protocol_model.rules import Rules
from protocol_model.scenarios import SAFE, WEAK

QUICK = [scenario for scenario in SAFE if not scenario.is_long]


def left_out(scenario):
    return {name for name, is_kept in dataclasses.asdict(scenario.rules).items() if not is_kept}


@pytest.mark.parametrize("scenario", QUICK, ids=lambda scenario: scenario.name)
def test_nothing_is_ever_lost(scenario):
    result = scenario.explore()
    assert not result.violation, "\n".join((result.violation, *result.trace))
    assert result.is_complete
    assert scenario.ends <= result.ends


@pytest.mark.parametrize("scenario", WEAK, ids=lambda scenario: scenario.name)
def test_something_is_lost_without_the_rule(scenario):
    result = scenario.explore()
    assert result.violation
    assert result.trace


def test_every_rule_is_needed_but_one():
    assert {name for scenario in WEAK for name in left_out(scenario)} == {
        field.name for field in dataclasses.fields(Rules)
    }
    assert {name for scenario in SAFE for name in left_out(scenario)} == {"keeps_spared_moves"}


def test_a_counterexample_is_told_step_by_step():
    result = next(scenario for scenario in WEAK if left_out(scenario) == {"commits_first"}).explore()
    assert result.trace == ("w1: sequence", "w1: superseded too early", "w1: forget too early")
    assert "m0" in result.violation
