"""A softmax driven to exact zeros and ones, where cross-entropy has no gradient in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from holdfast.trust.base import Check, CheckCard, Doubt
from holdfast.trust.probe import Probe


@final
@dataclass(frozen=True)
class SaturatedSoftmax(Check):
    """Compares two losses: the cross-entropy's gradient is zero where the margin's is not.

    Stages that met zero gradients themselves are named, so that it is known which of the attacks
    were blind; those on other losses see.

    Attributes:
        share: Of samples without a gradient of cross-entropy, from which on there is a doubt.
    """

    card: ClassVar[CheckCard] = CheckCard(
        name="saturated_softmax",
        title="cross-entropy without a gradient, because the softmax is saturated",
        paper="Papernot et al. (2016), arXiv:1511.04508, broken by Carlini and Wagner (2017), "
        "arXiv:1608.04644",
        is_cause=True,
    )

    share: float = 0.1

    def look(self, probe: Probe) -> Doubt | None:
        """The share of samples that only one of the losses sees; then which stages met it."""
        margin = probe.gradients.flatten(1).abs().amax(1)
        loss = probe.loss_gradients.flatten(1).abs().amax(1)
        is_blind = (margin > 0) & ((loss == 0) | (loss < torch.finfo(loss.dtype).tiny * 1e3))
        share = float(is_blind.float().mean())
        if share < self.share:
            return None
        text = (
            f"the softmax is saturated on {share:.0%} of the samples looked at, where the gradient "
            "of the cross-entropy is zero although that of the logits is not"
        )
        blind = tuple(stage for stage, part in blind_shares(probe).items() if part >= self.share)
        return Doubt(text, {"share_saturated": share}, ({"name": "rescaled"},), blind)


def blind_shares(probe: Probe) -> dict[int, float]:
    """For every stage that took gradients, the share of them that were zero or not finite."""
    counts = probe.standing.blind.items()
    return {stage: zero / backward for stage, (backward, zero) in counts if backward}
