"""For each contract the defects it catches; each defect is caught by at least one contract."""

import contextlib

import defects as d
import pytest
import torch

from holdfast import model as model_module
from holdfast.contracts import CONTRACTS, ContractViolation
from holdfast.contracts.suite import Case
from holdfast.engine import single, slots
from holdfast.model import Model

CATCHES = {
    "stays_in_the_set": [
        (d.LeavesTheBall, "linf"),
        (d.LeavesTheBox, "linf"),
        (d.HardCodedBox, "linf"),
        (d.MovesWithoutRoom, "l0"),
    ],
    "keeps_the_type": [(d.AsksInDouble, "linf")],
    "leaves_its_inputs_alone": [(d.WritesIntoX, "l2")],
    "repeats_with_the_seed": [
        (d.UnseededNoise, "linf"),
        (d.IgnoresTheSeed, "linf"),
        (d.SaysDeterministic, "linf"),
        (d.RemembersInItself, "linf"),
    ],
    "draws_no_other_numbers": [(d.UnseededNoise, "linf"), (d.SeedsTorch, "linf")],
    "stands_alone": [
        (d.CouplesTheBatch, "linf"),
        (d.NoiseByPlace, "l2"),
        (d.CommonClock, "linf"),
        (d.NormalisesTheBatch, "l2"),
        (d.CommonRadius, "l2"),
        (d.RemembersInItself, "linf"),
    ],
    "survives_a_stop": [(d.KeepsAFunction, "linf")],
    "uses_the_last_answer": [(d.StaleGradient, "linf"), (d.StaleGradient, "l2")],
    "keeps_to_its_budget": [
        (d.ForgetsItsBudget, "linf"),
        (d.FinishesAsOne, "linf"),
        (d.DoublesItsPasses, "linf"),
    ],
    "foresees_its_questions": [
        (d.ForeseesOtherNumbers, "linf"),
        (d.ForeseesTheSame, "l2"),
        (d.MissesWhatMatters, "linf"),
        (d.ForgetsTheEnd, "linf"),
        (d.ValuesEveryAnswer, "l1"),
    ],
    "takes_any_head": [(d.NeedsThreeClasses, "linf")],
    "takes_any_shape": [(d.NeedsImages, "linf")],
    "survives_bad_gradients": [(d.FollowsNaN, "linf")],
    "does_nothing_without_room": [(d.MovesWithoutRoom, "linf")],
    "has_an_honest_card": [(d.ClaimsScores, "linf"), (d.TupleOption, "linf")],
    "improves_on_its_start": [(d.SignFlipped, "linf"), (d.WrongLabel, "l2")],
    "solves_a_linear_model": [
        (d.SignFlipped, "linf"),
        (d.OneCoordinate, "linf"),
        (d.TinyStep, "l2"),
        (d.HalfTheBall, "l1"),
        (d.WrongLabel, "linf"),
        (d.StopsAtOnce, "l2"),
        (d.MinimalOneCoordinate, "l2"),
    ],
    "finds_the_hyperplane": [
        (d.ClampsThePoint, "l2"),
        (d.WrongDualNorm, "linf"),
        (d.WrongDualNorm, "l1"),
        (d.ForgetsTheBox, "l2"),
        (d.ForgetsTheBox, "l1"),
    ],
    "reaches_its_target": [(d.IgnoresTheTarget, "linf"), (d.MinimalWithoutTarget, "l2")],
    "matches_the_grid": [(d.HalfTheBall, "l2"), (d.OneCoordinate, "linf"), (d.TinyStep, "linf")],
    "leaves_no_trace": [(d.SeedsNumpy, "linf")],
    "does_not_depend_on_the_batch": [(d.CouplesTheBatch, "linf"), (d.NoiseByPlace, "linf")],
}
PAIRS = [(name, kind, norm) for name, pairs in CATCHES.items() for kind, norm in pairs]


CRASH = {d.KeepsAFunction, d.AsksInDouble}
"""Caught because something raises; the others are caught because a contract looks."""


def violates(name, attack, norm):
    with pytest.raises(ContractViolation) as caught:
        Case(CONTRACTS[name], attack, norm).check()
    by_looking = isinstance(caught.value.__cause__, ContractViolation)
    assert by_looking or type(attack) in CRASH, caught.value


@pytest.mark.parametrize(
    ("name", "kind", "norm"), PAIRS, ids=[f"{n}-{k.__name__}-{norm}" for n, k, norm in PAIRS]
)
def test_contract_catches(name, kind, norm):
    violates(name, kind(), norm)


@pytest.mark.parametrize("name", [name for name in CATCHES if name != "has_an_honest_card"])
def test_unharmed_attack_passes(name):
    Case(CONTRACTS[name], d.Sound(), "linf").check()


def test_what_leaves_the_set_is_not_returned_whatever_an_attack_says_of_itself():
    torch.manual_seed(0)
    net, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)), torch.rand(6, 3, 2, 2)
    y = net(x).argmax(1)
    x_adv = d.LeavesTheBall()(net, x, y, "linf:0.1", stop="budget")
    assert float((x_adv - x).abs().max()) <= 0.1 + 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_unharmed_search_passes(norm):
    Case(CONTRACTS["foresees_its_questions"], d.SoundSearch(), norm).check()


@pytest.mark.parametrize("kind", [d.SoundDescent, d.SoundProjections])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_unharmed_minimal_attack_passes(kind, norm):
    Case(CONTRACTS["finds_the_hyperplane"], kind(), norm).check()


def _all_defects():
    kinds = [k for k in vars(d).values() if isinstance(k, type) and issubclass(k, d.Sound)]
    sound = (d.Sound, d.SoundSearch, d.SoundMinimal, d.SoundDescent, d.SoundProjections)
    return [k for k in kinds if k not in sound]


def test_every_defect_is_caught():
    assert set(_all_defects()) == {kind for _, kind, _ in PAIRS}


# ------------------------------------------------------------------ an engine with one thing wrong


@contextlib.contextmanager
def _no_session(self):
    yield self


@contextlib.contextmanager
def _careless_session(self):
    """Puts the modes back only if nothing goes wrong."""
    modes = [(m, m.training) for m in self.f.modules()]
    self.f.eval()
    yield self
    for module, mode in modes:
        module.training = mode


@contextlib.contextmanager
def _train_mode_session(self):
    """Puts the whole model into one mode at the end, frozen layers too."""
    is_outermost = self.f.last.training
    self.f.eval()
    yield self
    if is_outermost:
        self.f.train()


def _unjudged(tally, points, score):
    """Keeps the last point, allowed or not."""
    return slots.replace(tally, best=points, best_score=torch.zeros_like(tally.best_score))


def _twice(answer):
    def doubled(self, queries):
        answer(self, queries)
        return answer(self, queries)

    return doubled


def _upside_down(as_logits):
    return lambda out, head: (
        as_logits(out, head).flip(1) if head.kind == "logit" else as_logits(out, head)
    )


def _swallow(attack_batch):
    def silent(attack, model, x, *rest, **options):
        try:
            return attack_batch(attack, model, x, *rest, **options)
        except Exception:
            return x

    return silent


ENGINE = {
    "no session": ("leaves_no_trace", d.Sound, Model, "session", _no_session),
    "one mode for all": ("leaves_no_trace", d.Sound, Model, "session", _train_mode_session),
    "no clean-up after a crash": (
        "leaves_no_trace_of_a_crash",
        d.Sound,
        Model,
        "session",
        _careless_session,
    ),
    "a swallowed crash": (
        "leaves_no_trace_of_a_crash",
        d.Sound,
        single,
        "attack_batch",
        _swallow(single.attack_batch),
    ),
    "no judge": ("returns_what_it_found", d.LeavesTheBall, slots, "kept", _unjudged),
    "the last point, not the best": (
        "returns_what_it_found",
        d.SignFlipped,
        slots,
        "kept",
        _unjudged,
    ),
    "passes paid twice": ("pays_what_it_says", d.Sound, Model, "_answer", _twice(Model._answer)),
    "one logit upside down": (
        "takes_one_logit",
        d.Sound,
        model_module,
        "as_logits",
        _upside_down(model_module.as_logits),
    ),
}


@pytest.mark.parametrize("label", ENGINE)
def test_contract_catches_a_broken_engine(label, monkeypatch):
    name, kind, owner, attribute, broken = ENGINE[label]
    monkeypatch.setattr(owner, attribute, broken)
    with torch.random.fork_rng(devices=[]):
        violates(name, kind(), "linf")


def test_contract_catches_weight_gradients(monkeypatch):
    run = Model.answer

    def answer(self, *queries, **options):
        found = run(self, *queries, **options)
        for parameter in self.modules[0].parameters():
            parameter.requires_grad_(True)
            parameter.grad = torch.zeros_like(parameter)
        return found

    monkeypatch.setattr(Model, "answer", answer)
    violates("leaves_no_trace", d.Sound(), "linf")


def test_every_contract_is_shown_to_catch_something():
    assert set(CONTRACTS) == set(CATCHES) | {name for name, *_ in ENGINE.values()}
