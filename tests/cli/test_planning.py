"""From typed options to a plan."""

import re

import pytest

from holdfast.cli import planning
from holdfast.errors import PlanError, ThreatError
from holdfast.plan import DataSpec, ModelSpec, Plan, Stage, load_cascade

BASE = Plan(
    model=ModelSpec(source="model.pt2", mean=(0.5,)),
    data=DataSpec(source="digits", n=5),
    threats=("linf:0.1",),
    stages=(Stage.model_validate({"attack": "pgd", "steps": 3}),),
    seed=7,
)


def test_options_replace_parts_of_a_plan():
    plan = planning.make_plan(BASE, {"data.n": 9, "threats": ("l2:1",), "seed": None})
    assert plan.data == DataSpec(source="digits", n=9)
    assert plan.threats == ("l2:1",)
    assert plan.model == BASE.model
    assert (plan.seed, plan.stages) == (7, BASE.stages)


def test_nothing_given_is_the_same_plan():
    assert planning.make_plan(BASE, {"data.n": None}) == BASE
    assert planning.make_plan(Plan.from_toml(BASE.to_toml()), {}).id == BASE.id


def test_a_cascade_replaces_the_stages():
    plan = planning.make_plan(BASE, {"cascade": "quick"})
    assert plan.stages == ()
    assert plan.resolved_stages == load_cascade("quick")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"data.source": "", "threats": ("linf:1",)}, PlanError, "Which data"),
        ({"threats": ()}, PlanError, "What may the attacker change"),
        ({"threats": ("round:1",)}, ThreatError, "Unknown threat 'round'"),
        ({"access": "all"}, PlanError, "access: .*seen: 'all'"),
        ({"target": "best"}, PlanError, "Unknown target 'best'"),
        ({"cascade": "strong"}, PlanError, "Unknown cascade 'strong'"),
        ({"quantise": "4bit"}, PlanError, "quantise: "),
    ],
)
def test_mistakes_are_told(given, error, message):
    with pytest.raises(error, match=message):
        planning.make_plan(BASE, given)


def test_numbers():
    assert planning.numbers("0.5", "--mean") == (0.5,)
    assert planning.numbers("0.4,0.5, 0.6", "--mean") == (0.4, 0.5, 0.6)
    assert planning.numbers("[1e-2 2]", "--std") == (0.01, 2.0)
    assert planning.numbers(None, "--std") is None
    with pytest.raises(PlanError, match="--std 'a,b'"):
        planning.numbers("a,b", "--std")


def test_domains():
    assert planning.domain("-1,1") == (-1.0, 1.0)
    assert planning.domain("data") == "data"
    assert planning.domain(None) is None
    for text in ("1,0", "0", "0,1,2", "low,high", "nan,1"):
        with pytest.raises(PlanError, match="--domain"):
            planning.domain(text)


def test_goals_and_access():
    assert planning.target(None, None) is None
    assert planning.target(None, True) == "random"
    assert planning.target("runner_up", None) == "runner_up"
    assert planning.target("3", True) == 3
    assert [planning.access(t) for t in ("gradient", "scores", "Label", "decision", None)] == [
        "gradients",
        "scores",
        "labels",
        "labels",
        None,
    ]
    assert {planning.quantise(t) for t in ("8bit", "8", "8-bit", "8BITS")} == {"8bit"}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("models/resnet.pt2", "resnet"),
        ("a.b:make_net(depth=3)", "make_net"),
        ("net.onnx", "net"),
        ("dir/code.py:Net()", "Net"),
        ("", "model"),
    ],
)
def test_names_of_directories(source, name):
    assert re.fullmatch(
        rf"holdfast-{name}-\d{{8}}-\d{{6}}", str(planning.default_directory(source))
    )
