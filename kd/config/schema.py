"""Everything a run can be told: type, default, unit and the paper's symbol of each field.

The meaning of a field is its metadata, so `--help` and the code cannot disagree. Types and ranges of single
values are checked when a file is read (`kd.config.load`), rules between fields in `Config.__post_init__`.
"""

from dataclasses import dataclass, field
from typing import Literal

from kd.config.fields import (
    Count,
    GatherName,
    LayoutName,
    MethodName,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    Probability,
    Section,
    means,
)
from kd.config.methods import (
    DistiLLMConfig,
    GKDConfig,
    KDConfig,
    MiniLLMConfig,
    PromptConfig,
    SeqKDConfig,
    StudentLoraConfig,
    TeacherLoraConfig,
)
from kd.config.rules import check_adaptation, check_minillm, check_sources
from kd.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    student: str = field(metadata=means("student q_θ: from_pretrained directory or hub name"))
    teacher: str | None = field(default=None, metadata=means("teacher p: directory or hub name; null for sft"))
    dtype: Literal["bf16", "fp16", "fp32"] = field(
        default="bf16", metadata=means("precision of weights and activations; fp16 needs a GPU")
    )
    student_dropout: bool = field(default=False, metadata=means("keep the student's dropout; the teacher's is 0"))
    gradient_checkpointing: bool = field(
        default=True, metadata=means("recompute activations in the backward pass instead of keeping them")
    )
    trust_remote_code: bool = field(default=False, metadata=means("let code that comes with a checkpoint run"))


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    train: str | None = field(
        default=None, metadata=means("training rows: .jsonl, .json or .parquet file, or hub name[:split]")
    )
    validation: str | None = field(default=None, metadata=means("validation rows, as data.train; null for none"))
    template: str = field(
        default="alpaca",
        metadata=means("alpaca (the paper's Table 5), chat (the tokenizer's), or a Jinja file with instruction, input"),
    )
    max_prompt_tokens: Count = field(default=256, metadata=means("longest prompt x [tokens]"))
    max_sequence_tokens: Count = field(default=512, metadata=means("longest prompt and response together [tokens]"))
    overlong: Literal["drop", "truncate"] = field(
        default="drop", metadata=means("a prompt that is too long: drop its row, or keep its last tokens")
    )
    responses: str | None = field(
        default=None,
        metadata=means("JSON lines `prompt`, `response`: fixed pseudo-targets in place of data.train and of sampling"),
    )


@dataclass(frozen=True, kw_only=True)
class GenerationConfig(Section):
    layout: LayoutName = field(
        default="auto",
        metadata=means(
            "weights while sampling: gathered (whole on each rank), tensor_parallel (each rank of a group has a share),"
            " zero3 (shards, slow), auto (the first of these that fits)"
        ),
    )
    tensor_parallel_size: Count = field(
        default=1,
        metadata=means(
            "ranks of a host that share one copy under tensor_parallel; with auto, 1 is the fewest that fit"
        ),
    )
    max_new_tokens: Count = field(default=256, metadata=means("longest response y [tokens, EOS included]"))
    temperature: PositiveFloat = field(default=1.0, metadata=means("logits are divided by this before sampling"))
    top_p: Probability = field(
        default=1.0, metadata=means("sample from the smallest set with this probability; 1 is off")
    )
    top_k: NonNegativeInt = field(default=0, metadata=means("sample from the k most likely tokens; 0 is off"))
    max_batch_tokens: Count = field(
        default=16384, metadata=means("rows × (prompt + max_new_tokens) decoded together, for each rank [tokens]")
    )
    keep_weights: bool = field(
        default=True, metadata=means("keep the decoding copy between steps; false frees it for training")
    )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section):
    name: Literal["adamw", "sgd"] = field(default="adamw", metadata=means("update rule of student and prompt"))
    learning_rate: PositiveFloat = field(default=5e-6, metadata=means("η of the student"))
    weight_decay: NonNegativeFloat = field(
        default=0.01, metadata=means("decay of the student's matrices; vectors and the soft prompt have none")
    )
    grad_clip: NonNegativeFloat = field(
        default=1.0, metadata=means("largest gradient norm, student and prompt apart; 0 is off")
    )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Section):
    steps: Count = field(default=1000, metadata=means("K, number of optimizer steps"))
    epochs: PositiveFloat | None = field(default=None, metadata=means("passes over the data; takes the place of steps"))
    warmup_steps: NonNegativeInt = field(
        default=100, metadata=means("steps in which learning rates rise linearly from 0")
    )
    decay: Literal["constant", "linear", "cosine"] = field(
        default="constant", metadata=means("course of the learning rates after the warm-up (to 0 at step K)")
    )
    global_batch: Count = field(default=64, metadata=means("sequences in one optimizer step, over all ranks"))
    micro_batch: Count = field(default=4, metadata=means("sequences in one forward pass of one rank"))


@dataclass(frozen=True, kw_only=True)
class EngineConfig(Section):
    student: str = field(
        default="ds_configs/zero3.json", metadata=means("DeepSpeed JSON: ZeRO, offload, communication")
    )
    teacher: str = field(
        default="ds_configs/zero3.json", metadata=means("DeepSpeed JSON of the teacher; ZeRO stage 3, or 0")
    )
    gather: GatherName = field(
        default="auto",
        metadata=means("what ZeRO-3 gathers at a time: layer, the whole model once for a window, or auto by memory"),
    )
    pass_tokens: Count = field(
        default=16384, metadata=means("rows × slots of one pass of the sharded teacher without gradient [tokens]")
    )
    loss_chunk_mib: Count = field(
        default=128, metadata=means("size of one [chunk, vocabulary] fp32 tensor of the loss [MiB]")
    )


@dataclass(frozen=True, kw_only=True)
class ValidationConfig(Section):
    every: Count = field(default=100, metadata=means("steps between validations (and one after the last step)"))
    rows: Count = field(default=1000, metadata=means("at most this many validation rows, the first of the file"))
    generate: bool = field(
        default=True,
        metadata=means("sample responses for validation/rougeL, which then chooses best/; else the loss does"),
    )
    seed: NonNegativeInt = field(default=10, metadata=means("seed of the sampled validation responses"))


@dataclass(frozen=True, kw_only=True)
class CheckpointsConfig(Section):
    every: Count = field(default=100, metadata=means("steps between checkpoints (and one after the last step)"))
    keep: Count = field(default=2, metadata=means("newest checkpoints kept on disk"))
    export_every: Count | None = field(
        default=None, metadata=means("steps between students kept in exports/, for curves over training; null for none")
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    dir: str = field(metadata=means("directory of everything the run writes"))
    seed: NonNegativeInt = field(default=42, metadata=means("seed of data order, sampling and random initialisation"))
    resume: Literal["auto", "never"] = field(
        default="auto",
        metadata=means("auto: go on from the newest checkpoint in run.dir; never: refuse a used run.dir"),
    )
    log_every: Count = field(default=1, metadata=means("steps between lines of metrics.jsonl"))
    max_hours: PositiveFloat | None = field(
        default=None, metadata=means("write a checkpoint and stop after this many hours; the same command goes on")
    )
    tensorboard: bool = field(default=True, metadata=means("write TensorBoard curves when tensorboard is installed"))
    wandb: str | None = field(default=None, metadata=means("Weights & Biases project to report to; null for none"))


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    """A whole run."""

    method: MethodName = field(
        default="promptkd",
        metadata=means("the algorithm: sft, kd, seqkd, gkd, minillm, distillm or promptkd (see docs/methods.md)"),
    )
    model: ModelConfig
    data: DataConfig
    run: RunConfig
    kd: KDConfig = field(default_factory=KDConfig)
    seqkd: SeqKDConfig = field(default_factory=SeqKDConfig)
    gkd: GKDConfig = field(default_factory=GKDConfig)
    minillm: MiniLLMConfig = field(default_factory=MiniLLMConfig)
    distillm: DistiLLMConfig = field(default_factory=DistiLLMConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    teacher_lora: TeacherLoraConfig = field(default_factory=TeacherLoraConfig)
    student_lora: StudentLoraConfig = field(default_factory=StudentLoraConfig)
    generation: GenerationConfig = GenerationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    engine: EngineConfig = EngineConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()

    @property
    def samples_responses(self) -> bool:
        """Whether the student's own generations are among the training data."""
        if self.data.responses is not None:
            return False
        samples_part = self.method == "gkd" and self.gkd.student_fraction > 0
        return self.method in ("minillm", "distillm", "promptkd") or samples_part

    @property
    def needs_outputs(self) -> bool:
        """Whether training rows must have responses of their own."""
        if not self.samples_responses or self.method == "distillm":
            return True
        if self.method == "promptkd":
            return self.prompt.student_fraction < 1
        return self.method == "gkd" and (self.gkd.student_fraction < 1 or self.gkd.sft_weight > 0)

    @property
    def tunes_prompt(self) -> bool:
        """Whether a soft prompt stands in front of the teacher's input."""
        return self.method == "promptkd" and not self.teacher_lora.is_on

    def __post_init__(self) -> None:
        """Refuse fields that contradict each other.

        Raises:
            UserError: the first contradiction.
        """
        if self.method == "sft" and self.model.teacher is not None:
            raise UserError("method sft trains model.student alone; set model.teacher=null")
        if self.method != "sft" and self.model.teacher is None:
            raise UserError(f"method {self.method} needs model.teacher, a directory or hub name")
        if self.method != "seqkd" and (self.data.train is None) == (self.data.responses is None):
            raise UserError("give exactly one of data.train (rows) and data.responses (fixed pseudo-targets)")
        check_sources(self)
        check_adaptation(self)
        check_minillm(self)
        if self.data.max_prompt_tokens >= self.data.max_sequence_tokens:
            raise UserError(
                f"data.max_prompt_tokens is {self.data.max_prompt_tokens}, which leaves no room for a response"
                f" in data.max_sequence_tokens={self.data.max_sequence_tokens}; lower the first or raise the second"
            )
        longest = self.data.max_prompt_tokens + self.generation.max_new_tokens
        if self.samples_responses and longest > self.data.max_sequence_tokens:
            raise UserError(
                f"data.max_prompt_tokens + generation.max_new_tokens is {longest}, more than"
                f" data.max_sequence_tokens={self.data.max_sequence_tokens}; lower one or raise the last"
            )
        layout, parallel = self.generation.layout, self.generation.tensor_parallel_size
        if layout == "tensor_parallel" and parallel == 1:
            raise UserError("generation.layout=tensor_parallel needs generation.tensor_parallel_size of at least 2")
        if layout in ("gathered", "zero3") and parallel > 1:
            raise UserError(
                f"generation.tensor_parallel_size={parallel} has no effect with generation.layout={layout};"
                " make it 1, or the layout tensor_parallel or auto"
            )
        if self.schedule.epochs is None and self.schedule.warmup_steps > self.schedule.steps:
            raise UserError(
                f"schedule.warmup_steps={self.schedule.warmup_steps} is more than"
                f" schedule.steps={self.schedule.steps}; the warm-up would never end"
            )
