"""Sections of the configuration that belong to single methods, or to single ways to train a model."""

from dataclasses import dataclass, field
from typing import Literal

from kd.config.fields import (
    Count,
    DivergenceName,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    Probability,
    Section,
    Share,
    ShareOfMixture,
    means,
)


@dataclass(frozen=True, kw_only=True)
class LoraConfig(Section):
    rank: NonNegativeInt = field(default=0, metadata=means("r of the adapters; 0 is off"))
    alpha: PositiveFloat = field(default=32.0, metadata=means("what adapters add is multiplied by alpha / rank"))
    targets: tuple[str, ...] | None = field(
        default=None,
        metadata=means("list of names of the adapted layers, or [all-linear]; null is peft's choice for the family"),
    )

    @property
    def is_on(self) -> bool:
        return self.rank > 0


@dataclass(frozen=True, kw_only=True)
class TeacherLoraConfig(LoraConfig):
    rank: NonNegativeInt = field(
        default=0,
        metadata=means("promptkd: r of adapters that take the place of the soft prompt (Table 9); 0 is off"),
    )


@dataclass(frozen=True, kw_only=True)
class StudentLoraConfig(LoraConfig):
    rank: NonNegativeInt = field(
        default=0, metadata=means("r of adapters that are trained in the place of the student's own weights; 0 is off")
    )


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(Section):
    """D, the divergence from the plain teacher."""

    divergence: DivergenceName = field(
        default="forward_kl", metadata=means("D: forward_kl is KL(p||q), reverse_kl KL(q||p); others see docs")
    )
    beta: Share = field(default=0.5, metadata=means("β of jsd, the teacher's part of the mixture"))
    alpha: ShareOfMixture = field(
        default=0.1,
        metadata=means("α of skew_kl and skew_reverse_kl, the part of the mixture that is the model itself"),
    )
    temperature: PositiveFloat = field(
        default=1.0, metadata=means("T: logits of both models are divided by it in D, which is then multiplied by T²")
    )


@dataclass(frozen=True, kw_only=True)
class KDConfig(DistillationConfig):
    ratio: Probability = field(default=0.5, metadata=means("r in (1-r)·CE + r·D"))


@dataclass(frozen=True, kw_only=True)
class SeqKDConfig(DistillationConfig):
    ratio: Share = field(default=0.5, metadata=means("r in (1-r)·CE + r·D; 0 needs no teacher while training"))
    samples: Count = field(
        default=1, metadata=means("the teacher's responses to each request that generate_pseudo_data.py writes")
    )


@dataclass(frozen=True, kw_only=True)
class GKDConfig(DistillationConfig):
    divergence: DivergenceName = field(default="reverse_kl", metadata=means("D, as kd.divergence"))
    student_fraction: Share = field(
        default=1.0, metadata=means("λ, chance of a row to be answered by the student instead of the data")
    )
    sft_weight: NonNegativeFloat = field(
        default=0.0, metadata=means("weight of the cross entropy on the data's responses, added to D; 0 is off")
    )


@dataclass(frozen=True, kw_only=True)
class MiniLLMConfig(Section):
    corpus: str | None = field(
        default=None,
        metadata=means("pre-training text: a plain-text file, a folder of .txt files, or none for training without"),
    )
    corpus_weight: NonNegativeFloat = field(default=1.0, metadata=means("weight of the loss on the corpus"))
    corpus_kd_ratio: Share = field(default=0.5, metadata=means("r in (1-r)·CE + r·KL(p||q) on the corpus"))
    teacher_share: ShareOfMixture = field(
        default=0.2, metadata=means("α: tokens are sampled from α·p + (1-α)·q; 0 leaves sampling to the student")
    )
    rollouts: Count = field(default=256, metadata=means("responses that are sampled at once, over all ranks"))
    inner_epochs: Count = field(default=4, metadata=means("passes over these responses before new ones are sampled"))
    ratio_clip: PositiveFloat = field(default=0.2, metadata=means("ε: ratios outside of 1 ± ε earn nothing more"))
    reward_scale: PositiveFloat = field(default=0.5, metadata=means("rewards are divided by this"))
    reward_limit: PositiveFloat = field(default=100.0, metadata=means("and then cut to ± this"))
    discount: Share = field(default=0.95, metadata=means("γ of later rewards"))
    length_normalized: bool = field(
        default=True, metadata=means("divide a return by the number of tokens that it sums over")
    )
    whitened: bool = field(default=True, metadata=means("move and scale a window's returns to mean 0 and variance 1"))

    @property
    def corpus_source(self) -> str | None:
        """Where the corpus is, if there is one."""
        return None if self.corpus == "none" else self.corpus


@dataclass(frozen=True, kw_only=True)
class DistiLLMConfig(DistillationConfig):
    divergence: DivergenceName = field(default="skew_kl", metadata=means("D, as kd.divergence"))
    initial_threshold: Share = field(
        default=0.0, metadata=means("φ at the beginning, chance of a window to learn from the student's responses")
    )
    loss_tolerance: NonNegativeFloat = field(
        default=0.1, metadata=means("ε: φ rises by 0.1 when the validation loss has risen by this much [nats]")
    )
    buffer_rows: Count = field(default=1000, metadata=means("newest responses of the student that are kept"))


@dataclass(frozen=True, kw_only=True)
class PromptConfig(Section):
    length: Count = field(default=7, metadata=means("m, number of soft prompt tokens"))
    init: Literal["text", "padding", "random"] = field(default="text", metadata=means("what P starts as"))
    init_text: str = field(default="Suppose you are a student.", metadata=means("text whose embeddings P starts from"))
    learning_rate: PositiveFloat = field(
        default=5e-6, metadata=means("η of the prompt, or of teacher_lora in its place")
    )
    regularization: Literal["linear", "constant", "none"] = field(
        default="linear", metadata=means("weight of L_reg at step k of K: (K-k)/K (Eq. 3), 1, or 0")
    )
    kd_divergence: DivergenceName = field(
        default="reverse_kl", metadata=means("L_kd; reverse: KL(p(.|P,x)||q) (Eq. 1)")
    )
    regularization_divergence: DivergenceName = field(
        default="reverse_kl", metadata=means("L_reg; reverse: KL(p(.|P,x)||p(.|x)) (Eq. 2)")
    )
    student_divergence: DivergenceName = field(
        default="reverse_kl", metadata=means("L_student; reverse: KL(q||p(.|P,x)) (Eq. 4)")
    )
    beta: Share = field(default=0.5, metadata=means("β of jsd in any of these three"))
    alpha: ShareOfMixture = field(default=0.1, metadata=means("α of skew_kl and skew_reverse_kl in any of these three"))
    student_fraction: Share = field(
        default=1.0,
        metadata=means(
            "chance of a row to tune P by the student's response instead of the data's; Eq. 4 has all of it"
        ),
    )
