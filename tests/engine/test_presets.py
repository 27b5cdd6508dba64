"""Every named cascade on every head, norm and access; stages that are for some samples only."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import holdfast
from holdfast import Model, Plan
from holdfast.contracts._toys import Net, inputs
from holdfast.data import ArrayData
from holdfast.engine import journal
from holdfast.engine.cascade import Step, Terms, fitting, has_found, parts
from holdfast.engine.run import run
from holdfast.errors import PlanError
from holdfast.events import PhaseDone
from holdfast.plan import Stage, cascades, load_cascade
from holdfast.threat import Access

SHORT = {"steps": 2, "queries": 6, "runs": 2, "restarts": 1, "n_targets": 2, "starts": 1}


def shortened(name):
    """The stages of a cascade with little to do."""
    stages = []
    for stage in load_cascade(name):
        data = stage.model_dump(exclude_none=True)
        stages.append(data | {key: value for key, value in SHORT.items() if key in stage.options})
    return stages


class OneLogit(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net(8, 2, seed=5)

    def forward(self, x):
        z = self.net(x)
        return z[:, 1] - z[:, 0]


def answers(model, x):
    with torch.no_grad():
        z = model(x)
    return (z > 0).long() if z.ndim == 1 else z.argmax(1)


HEADS = {"1": OneLogit(), "2": Net(8, 2), "3": Net(8, 3), "1000": Net(8, 1000)}


@pytest.mark.parametrize("name", sorted(cascades()))
@pytest.mark.parametrize("head", HEADS)
def test_every_cascade_takes_every_head(name, head):
    model, x = HEADS[head], inputs(2, 3)
    report = holdfast.audit(
        model, (x, answers(model, x)), "linf:0.05", cascade=shortened(name), curve_steps=0
    )
    assert report.clean_accuracy.value == 1.0
    assert "unfinished" not in [verdict.value for verdict in report.verdicts]


@pytest.mark.parametrize("name", sorted(cascades()))
@pytest.mark.parametrize("access", ["scores", "labels"])
@pytest.mark.parametrize("threat", ["linf:0.9", "l2:2", "l1:4", "l0:4"])
def test_every_cascade_has_attacks_for_every_access(name, access, threat):
    model, x = HEADS["3"], inputs(2, 3)
    report = holdfast.audit(
        model, (x, answers(model, x)), threat, cascade=shortened(name), access=access, curve_steps=0
    )
    assert any(stage.n_entered for stage in report.threats[threat].stages)


@pytest.mark.parametrize("name", sorted(cascades()))
@pytest.mark.parametrize("norm", ["l2:0.3", "l1:0.5", "l0:1"])
def test_every_cascade_has_attacks_for_every_norm(name, norm):
    model, x = HEADS["3"], inputs(2, 3)
    report = holdfast.audit(
        model, (x, answers(model, x)), norm, cascade=shortened(name), curve_steps=0
    )
    assert any(stage.n_entered for stage in report.threats[norm].stages)


@pytest.mark.parametrize("name", sorted(cascades()))
@pytest.mark.parametrize("norm", ["l1", "l0"])
def test_blind_searches_work_in_every_norm(name, norm):
    """What only they find is how masked gradients are noticed, so no norm may go without them."""
    for access in (Access.GRADIENTS, Access.SCORES):
        steps, _ = fitting(load_cascade(name), norm, access)
        blind = [s for s in steps if s.attack.card.access is Access.SCORES]
        needs_none = access is Access.GRADIENTS and name in ("autoattack_rand", "quick")
        assert blind or needs_none


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_default_searches_blindly_on_a_tenth_then_on_all(norm):
    steps, _ = fitting(load_cascade("standard"), norm, Access.GRADIENTS)
    squares = [s.terms for s in steps if s.attack.card.name == "square"]
    assert squares == [Terms(share=0.1), Terms(when="found")]


def test_in_l0_the_default_searches_blindly_for_everyone():
    steps, _ = fitting(load_cascade("standard"), "l0", Access.GRADIENTS)
    found = [s.terms for s in steps if s.attack.card.name == "sparse_rs"]
    assert found == [Terms(), Terms(within=0.3)]


def test_where_nothing_works_the_message_says_what_would():
    stages = (Stage(attack="fgsm"), Stage(attack="square"), Stage(attack="square"))
    with pytest.raises(PlanError, match=r"\(fgsm, square\).*l0.*labels.*one of: pointwise, or"):
        fitting(stages, "l0", Access.LABELS)
    with pytest.raises(PlanError, match="Write an attack that does"):
        fitting(stages, "wave", Access.LABELS)


# ------------------------------------------------------------------ stages for some samples


def test_a_job_is_for_samples_with_little_margin_left():
    terms = Terms(within=0.5)
    assert terms.wants(0.49, 0, 0.0)
    assert not terms.wants(0.5, 0, 0.0)
    assert terms.wants(0.24, 1, 0.0)
    assert not terms.wants(0.26, 1, 0.0)


def test_a_share_of_the_samples_is_drawn():
    assert Terms(share=0.1).wants(1.0, 0, 0.09)
    assert not Terms(share=0.1).wants(1.0, 0, 0.11)


def test_a_stage_that_waits_for_a_finding_pauses_the_cascade():
    attack = holdfast.PGD(steps=1)
    steps = [Step(0, "a", attack), Step(1, "b", attack, terms=Terms(share=0.5))]
    steps.append(Step(2, "c", attack, terms=Terms(when="found")))
    assert parts(steps) == [2, 3]
    broken_by = journal_array(0, 5)
    assert not has_found(steps, broken_by)
    assert has_found(steps, journal_array(0, 1))


def journal_array(*stages):
    return torch.tensor(stages).numpy()


class Blinded(nn.Module):
    """Rounds its input: the gradient is zero everywhere, the scores are not."""

    def __init__(self):
        super().__init__()
        self.net = Net(8, 3)

    def forward(self, x):
        return self.net((x * 16).round() / 16)


MASKED = [
    {"attack": "pgd", "steps": 3},
    {"attack": "square", "queries": 60, "share": 0.3},
    {"attack": "square", "queries": 60, "when": "found"},
]


def audited(model, x, out, threat="linf:0.3", batch_size=None):
    data = ArrayData(x, answers(model, x))
    stages = tuple(Stage.model_validate(stage) for stage in MASKED)
    plan = Plan(threats=(threat,), stages=stages, trust="off", curve_steps=0, batch_size=batch_size)
    list(run(plan, Model(model, batch_size=batch_size), data, out))


def written(directory, kind):
    return [r for r in journal.read(directory) if r.kind == kind]


@pytest.mark.parametrize("threat", ["linf:0.3", "l2:0.6", "l1:1.2"])
def test_what_an_audit_of_some_finds_is_looked_for_in_all(tmp_path, threat):
    audited(Blinded(), inputs(1, 30), tmp_path, threat)
    attempts = written(tmp_path, "attempt")
    drawn = {a.sample for a in attempts if a.stage == 1}
    assert 0 < len(drawn) < 30
    assert any(a.stage == 1 and a.outcome.value == "broken" for a in attempts)
    alive = set(range(30)) - {
        a.sample for a in attempts if a.stage < 2 and a.outcome.value == "broken"
    }
    assert {a.sample for a in attempts if a.stage == 2} == alive


def test_where_an_audit_of_some_finds_nothing_the_others_are_spared(tmp_path):
    audited(Net(8, 3), inputs(1, 30), tmp_path, threat="linf:0")
    assert not [a for a in written(tmp_path, "attempt") if a.stage == 2]
    assert len([s for s in written(tmp_path, "spared") if s.stage == 2]) == 30


def test_a_stage_that_waits_for_a_finding_is_not_over_before_it_began(tmp_path):
    x = inputs(1, 30)
    stages = tuple(Stage.model_validate(stage) for stage in MASKED)
    plan = Plan(threats=("linf:0.3",), stages=stages, trust="off", curve_steps=0)
    events = run(plan, Model(Blinded()), ArrayData(x, answers(Blinded(), x)), tmp_path)
    costs = [e.passes_per_sample for e in events if isinstance(e, PhaseDone) and e.threat]
    assert len(costs) == len(MASKED)
    assert costs == sorted(set(costs))


def test_spared_stages_do_not_depend_on_batch_order_or_a_stop(tmp_path):
    model, x = Blinded(), inputs(1, 24)
    first, second = tmp_path / "first", tmp_path / "second"
    audited(model, x, first)
    audited(model, x.flip(0), second, batch_size=5)

    def facts(directory, is_flipped):
        place = [23 - i if is_flipped else i for i in range(24)]
        return {(place[s.sample], s.stage, s.jobs) for s in written(directory, "spared")}

    assert facts(first, False) == facts(second, True)


def test_a_share_or_a_limit_is_part_of_the_stages_label():
    stage = Stage.model_validate({"attack": "square", "queries": 5, "share": 0.1, "within": 0.5})
    assert stage.describe() == "square(queries=5), for a random 10%, within 0.5 of the margin"


def test_published_protocols_get_no_stages_of_ours():
    def chosen(**given):
        return Plan(threats=("linf:0.1",), **given).trust

    published = [name for name in cascades() if name.startswith("autoattack")]
    assert {chosen(cascade=name) for name in published} == {"look"}
    assert chosen() == chosen(cascade="thorough") == "act"
    assert chosen(cascade="quick") == "reroute"
    assert chosen(cascade="autoattack", trust="act") == "act"
    assert chosen(cascade="autoattack", stages=(Stage(attack="pgd"),)) == "act"
