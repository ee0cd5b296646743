"""Settings of a divergence from the teacher, which several methods share."""

from dataclasses import dataclass

from kd.config.fields import MixtureShare, PositiveFloat, Section, Share, option
from kd.losses.divergences import DivergenceName, make_divergence
from kd.losses.outputs import Outputs
from kd.losses.terms import DivergenceTerm


@dataclass(frozen=True, kw_only=True)
class DistillationSettings(Section):
    """D, a divergence between teacher and student."""

    divergence: DivergenceName = option(
        "forward_kl", help="D: forward_kl is KL(p||q), reverse_kl is KL(q||p); docs/methods.md has the others"
    )
    beta: Share = option(0.5, help="β of jsd, the teacher's share of the mixture")
    alpha: MixtureShare = option(0.1, help="α of skew_kl and skew_reverse_kl, the model's own share of the mixture")
    temperature: PositiveFloat = option(
        1.0, help="T: the logits of both models are divided by it in D, and D is scaled by T²"
    )

    def term(self, target: Outputs) -> DivergenceTerm:
        """T²·D between the trained model and `target`; T² keeps the gradient's scale (arXiv 1503.02531, §2.1)."""
        divergence = make_divergence(self.divergence, beta=self.beta, alpha=self.alpha, temperature=self.temperature)
        return DivergenceTerm(divergence=divergence, target=target, weight=self.temperature**2)
