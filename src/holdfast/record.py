"""What a run leaves behind: one record per line of the journal, and nothing else.

A report is a fold over these records. Verdicts are a closed set; a sample's verdict under a threat
is derived from its records, never stored twice.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class Verdict(StrEnum):
    """The answer for one sample under one threat."""

    WRONG = "wrong"
    """Misclassified without any change: counts as not robust."""
    BROKEN = "broken"
    """An allowed change was found, replayed, and fools the model."""
    VERIFIED = "verified"
    """No allowed change fools the model: there is a proof."""
    UNKNOWN = "unknown"
    """Neither was shown: every attack of the plan failed."""
    UNFINISHED = "unfinished"
    """The run stopped before every attack of the plan was tried."""


class Outcome(StrEnum):
    """How one attack job ended."""

    BROKEN = "broken"
    SURVIVED = "survived"
    STOPPED = "stopped"
    """The sample's budget of passes or queries ran out."""


class _Record(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="ignore", protected_namespaces=(), ser_json_inf_nan="constants"
    )


class Header(_Record):
    """The first line of a journal."""

    kind: Literal["header"] = "header"
    version: Literal[1] = 1
    plan_id: str
    plan: dict[str, Any]
    created: str
    """ISO 8601, UTC."""
    command: str
    """What repeats the run."""
    environment: dict[str, str]
    """Versions of Holdfast, Python, torch; platform, device, threads."""
    model: dict[str, Any]
    """``description``, ``hash`` of the weights, ``n_parameters``, ``access``, ``head``,
    ``n_classes``, ``domain``, ``is_random``, ``row_quantum``."""
    data: dict[str, Any]
    """``description``, ``hash``, ``n_samples``, ``shape``, ``class_names``."""
    tuning: dict[str, Any] = {}
    """``threads``, ``is_channels_last``, ``rows``, ``precision``, ``has_room``, ``is_compiled``:
    how the model ran fastest, or as asked for; kept on resuming."""


class Finding(_Record):
    """Something a reader of the result must know."""

    kind: Literal["finding"] = "finding"
    code: str
    """Stable name, e.g. ``random_model``, ``zero_gradients``, ``square_beats_gradients``."""
    level: Literal["info", "warning", "error"]
    text: str
    """One or two sentences in plain words, with the next step."""
    threat: str = ""


class Suspicion(BaseModel):
    """Why the attacks may have been misled."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")

    check: str
    """The check that found it, e.g. ``hard_steps``."""
    is_cause: bool = False
    """Whether it is what misleads attackers, rather than a sign that something does."""
    text: str
    """One clause in plain words that can follow "because"."""
    figures: dict[str, float] = {}
    """What was measured, by name."""
    stages: tuple[int, ...] = ()
    """Stages of the cascade that it speaks of; empty: all that follow the model's own gradients."""


class Added(BaseModel):
    """A stage that was added to the cascade while it ran."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    stage: int
    """Its number; those of the plan come first."""
    attack: str
    options: dict[str, Any] = {}
    route: dict[str, Any] = {}
    """Where its gradients come from, as :func:`holdfast.trust.routes.route` reads it."""
    label: str
    because: tuple[str, ...]
    """The checks that led to it."""


class Examined(_Record):
    """One look at how far the attacks can be trusted, and what was done about it."""

    kind: Literal["examined"] = "examined"
    threat: str
    round: int
    """0: after the attacks that follow the model's gradients; 1: after all others."""
    checks: tuple[str, ...]
    """All checks that were made."""
    n_probed: int
    """Samples that nothing had broken yet, on which they were made."""
    suspicions: tuple[Suspicion, ...] = ()
    added: tuple[Added, ...] = ()
    after: int = -1
    """The last stage of the plan that comes before the added ones."""
    through: dict[str, Any] = {}
    """Where the plan's own attacks get gradients from, in a model that gives none."""
    forward: int = 0
    backward: int = 0


class Clean(_Record):
    """The unchanged sample."""

    kind: Literal["clean"] = "clean"
    sample: int
    key: str
    """Hash of input and label (hexadecimal): what random numbers hang on."""
    y: int
    prediction: int
    target: int = -1
    """The class a targeted attacker wants; -1: any wrong one."""
    confidence: float
    """Softmax probability of the label."""
    confidence_predicted: float
    """Softmax probability of the prediction."""
    margin: float
    """Largest wrong logit minus the label's; negative while the answer is right."""
    loss: float
    """Cross-entropy of the label."""
    forward: int
    backward: int = 0
    """Passes backward of this measurement that no attack began with."""


class Attempt(_Record):
    """One finished attack job."""

    kind: Literal["attempt"] = "attempt"
    threat: str
    sample: int
    stage: int
    """Position of the attack in the cascade."""
    attack: str
    """The stage's label, e.g. ``apgd(loss=ce, steps=100)``."""
    target: int = -1
    """Class aimed at; -1: any wrong one."""
    restart: int = 0
    outcome: Outcome
    forward: int
    """Forward passes of this job, those of the judge among them."""
    backward: int
    margin: float
    """Largest margin met among the allowed points; positive: a wrong answer."""
    loss: float
    """Largest cross-entropy of the label met."""
    confidence: float
    """Smallest softmax probability of the label met."""
    prediction: int = -1
    """Answer to the adversarial input; -1 where there is none."""
    prediction_confidence: float = 0.0
    distance: float | None = None
    """Size of the change, in the threat's own norm, of the adversarial input."""
    rejected: int = 0
    """Claims that the judge refused (not allowed, not reproduced)."""
    zero_gradients: int = 0
    """Backward passes whose gradient was zero everywhere or not finite."""


class Spared(_Record):
    """A stage, or the rest of one, that a sample did not get: the cascade keeps it for others."""

    kind: Literal["spared"] = "spared"
    threat: str
    sample: int
    stage: int
    jobs: int
    """How many jobs of the stage it would have had."""


class Proven(_Record):
    """A proof that no allowed change fools the model on this sample."""

    kind: Literal["proven"] = "proven"
    threat: str
    sample: int
    margin: float
    """Proven lower bound of the label's logit minus any other's, over all allowed changes."""
    effort: str
    """``fast`` (CROWN), ``standard`` (optimised slopes) or ``thorough`` (branch and bound)."""


class Radius(_Record):
    """An upper bound on the smallest change that fools the model, from bisection towards x."""

    kind: Literal["radius"] = "radius"
    threat: str
    sample: int
    radius: float
    forward: int


class Failure(_Record):
    """A part of the run that ended in an error; the rest went on or can be resumed."""

    kind: Literal["failure"] = "failure"
    where: str
    error: str
    traceback: str = ""


class Session(_Record):
    """One sitting of the run: it began, and how it ended."""

    kind: Literal["session"] = "session"
    outcome: Literal["finished", "budget", "interrupted", "failed"]
    seconds: float
    passes_forward: int
    passes_backward: int
    """Over all samples, checks included."""
    peak_memory_mb: float | None = None


AnyRecord = Annotated[
    Header | Finding | Examined | Clean | Attempt | Spared | Proven | Radius | Failure | Session,
    Field(discriminator="kind"),
]
RECORD: TypeAdapter[AnyRecord] = TypeAdapter(AnyRecord)
