"""The sections of a run's configuration that all methods share: type, default, unit and symbol of each field.

A field's metadata is its line in `--help`. Types and ranges of single values are checked when a file is read
(`kd.config.load`), rules between fields in `Config.__post_init__`. A method's own sections are in its file in
`kd/methods/`.
"""

from dataclasses import dataclass, field
from typing import Literal, TypeVar

from kd.config.fields import (
    Count,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    Probability,
    Section,
    help_text,
)
from kd.errors import UserError

SectionType = TypeVar("SectionType", bound=Section)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    student: str = field(metadata=help_text("student q_θ: from_pretrained directory or hub name"))
    teacher: str | None = field(default=None, metadata=help_text("teacher p: directory or hub name; null for sft"))
    dtype: Literal["bf16", "fp16", "fp32"] = field(
        default="bf16", metadata=help_text("precision of weights and activations; fp16 needs a GPU")
    )
    student_dropout: bool = field(default=False, metadata=help_text("keep the student's dropout; the teacher's is 0"))
    gradient_checkpointing: bool = field(
        default=True, metadata=help_text("recompute activations in the backward pass instead of keeping them")
    )
    trust_remote_code: bool = field(default=False, metadata=help_text("run model code that comes with a checkpoint"))


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    train: str | None = field(
        default=None, metadata=help_text("training rows: .jsonl, .json or .parquet file, or hub name[:split]")
    )
    validation: str | None = field(default=None, metadata=help_text("validation rows, as data.train; null for none"))
    template: str = field(
        default="alpaca",
        metadata=help_text(
            "alpaca (the paper's Table 5), chat (the tokenizer's), or a Jinja file with instruction, input"
        ),
    )
    max_prompt_tokens: Count = field(default=256, metadata=help_text("longest prompt x [tokens]"))
    max_sequence_tokens: Count = field(default=512, metadata=help_text("longest prompt and response together [tokens]"))
    overlong: Literal["drop", "truncate"] = field(
        default="drop", metadata=help_text("rows with a longer prompt: drop them, or keep the prompt's last tokens")
    )
    responses: str | None = field(
        default=None,
        metadata=help_text("JSON lines `prompt`, `response`: fixed responses that replace data.train and rollouts"),
    )


@dataclass(frozen=True, kw_only=True)
class GenerationConfig(Section):
    layout: Literal["auto", "gathered", "tensor_parallel", "zero3"] = field(
        default="auto",
        metadata=help_text(
            "weights during rollouts: gathered (a full copy per rank), tensor_parallel (a copy divided over a group),"
            " zero3 (partitioned, slow), auto (the first of these that fits)"
        ),
    )
    tensor_parallel_size: Count = field(
        default=1,
        metadata=help_text(
            "ranks of a host that share one copy under tensor_parallel; with auto, 1 means the smallest group that fits"
        ),
    )
    max_new_tokens: Count = field(default=256, metadata=help_text("longest response y [tokens, EOS included]"))
    temperature: PositiveFloat = field(default=1.0, metadata=help_text("logits are divided by this before sampling"))
    top_p: Probability = field(
        default=1.0, metadata=help_text("nucleus sampling: smallest set of tokens with this probability; 1 disables it")
    )
    top_k: NonNegativeInt = field(default=0, metadata=help_text("sample from the k most likely tokens; 0 disables it"))
    max_batch_tokens: Count = field(
        default=16384, metadata=help_text("rows × (prompt + max_new_tokens) decoded together on each rank [tokens]")
    )
    keep_weights: bool = field(
        default=True, metadata=help_text("keep the inference copy between steps; false frees its memory for training")
    )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section):
    name: Literal["adamw", "sgd"] = field(default="adamw", metadata=help_text("update rule of student and prompt"))
    learning_rate: PositiveFloat = field(default=5e-6, metadata=help_text("η of the student"))
    weight_decay: NonNegativeFloat = field(
        default=0.01,
        metadata=help_text("weight decay of the student's matrices; vectors and the soft prompt have none"),
    )
    grad_clip: NonNegativeFloat = field(
        default=1.0, metadata=help_text("gradient norm clipping, separate for student and prompt; 0 disables it")
    )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Section):
    steps: Count = field(default=1000, metadata=help_text("K, number of optimizer steps"))
    epochs: PositiveFloat | None = field(
        default=None, metadata=help_text("epochs over the data; replaces schedule.steps")
    )
    warmup_steps: NonNegativeInt = field(
        default=100, metadata=help_text("steps of linear learning rate warm-up from 0")
    )
    decay: Literal["constant", "linear", "cosine"] = field(
        default="constant", metadata=help_text("learning rate schedule after the warm-up (to 0 at step K)")
    )
    global_batch: Count = field(default=64, metadata=help_text("sequences of one optimizer step, over all ranks"))
    micro_batch: Count = field(default=4, metadata=help_text("sequences in one forward and backward pass of one rank"))


@dataclass(frozen=True, kw_only=True)
class EngineConfig(Section):
    student: str = field(
        default="ds_configs/zero3.json", metadata=help_text("DeepSpeed JSON: ZeRO, offload, communication")
    )
    teacher: str = field(
        default="ds_configs/zero3.json", metadata=help_text("DeepSpeed JSON of the teacher; ZeRO stage 3, or 0")
    )
    gather: Literal["auto", "layer", "model"] = field(
        default="auto",
        metadata=help_text(
            "what ZeRO-3 gathers at a time: a layer, the model once for each global batch, or auto (by memory)"
        ),
    )
    inference_batch_tokens: Count = field(
        default=16384, metadata=help_text("rows × slots of an inference batch of a partitioned model [tokens]")
    )
    loss_chunk_mib: Count = field(
        default=128, metadata=help_text("size of one [chunk, vocabulary] fp32 tensor of the loss [MiB]")
    )


@dataclass(frozen=True, kw_only=True)
class ValidationConfig(Section):
    every: Count = field(default=100, metadata=help_text("steps between validations (and one after the last step)"))
    rows: Count = field(default=1000, metadata=help_text("number of validation rows, from the start of the file"))
    generate: bool = field(
        default=True,
        metadata=help_text("generate responses and score them; otherwise only the loss is measured, and selects best/"),
    )
    metric: Literal["rougeL", "exact_match", "accuracy", "loss"] = field(
        default="rougeL",
        metadata=help_text("what selects best/: a metric of the generated responses, or the loss"),
    )
    answer_pattern: str | None = field(
        default=None,
        metadata=help_text(
            "accuracy: regular expression whose first group is the answer in a response and in a reference"
        ),
    )
    seed: NonNegativeInt = field(default=10, metadata=help_text("seed of the sampled validation responses"))


@dataclass(frozen=True, kw_only=True)
class CheckpointsConfig(Section):
    every: Count = field(default=100, metadata=help_text("steps between checkpoints (and one after the last step)"))
    keep: Count = field(default=2, metadata=help_text("number of checkpoints kept on disk, the latest ones"))
    export_every: Count | None = field(
        default=None,
        metadata=help_text("steps between exports of the student to exports/, for curves over training; null for none"),
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    dir: str = field(metadata=help_text("directory that the run writes to"))
    seed: NonNegativeInt = field(
        default=42, metadata=help_text("seed of data order, sampling and random initialisation")
    )
    resume: Literal["auto", "never"] = field(
        default="auto",
        metadata=help_text("auto: resume from the latest checkpoint in run.dir; never: refuse a used run.dir"),
    )
    log_every: Count = field(default=1, metadata=help_text("steps between lines of metrics.jsonl"))
    max_hours: PositiveFloat | None = field(
        default=None, metadata=help_text("write a checkpoint and stop after this many hours; the same command resumes")
    )
    tensorboard: bool = field(
        default=True, metadata=help_text("write TensorBoard curves when tensorboard is installed")
    )
    wandb: str | None = field(default=None, metadata=help_text("Weights & Biases project to report to; null for none"))


@dataclass(frozen=True, kw_only=True)
class LoraConfig(Section):
    rank: NonNegativeInt = field(default=0, metadata=help_text("r of the adapters; 0 disables them"))
    alpha: PositiveFloat = field(default=32.0, metadata=help_text("the adapters' update is scaled by alpha / rank"))
    targets: tuple[str, ...] | None = field(
        default=None,
        metadata=help_text("names of the adapted layers, or [all-linear]; null for peft's default of the family"),
    )

    @property
    def is_on(self) -> bool:
        return self.rank > 0


@dataclass(frozen=True, kw_only=True)
class SoftPromptConfig(Section):
    length: Count = field(default=7, metadata=help_text("m, number of soft prompt tokens"))
    init: Literal["text", "padding", "random"] = field(default="text", metadata=help_text("initialisation of P"))
    init_text: str = field(
        default="Suppose you are a student.", metadata=help_text("text whose embeddings initialise P")
    )
    learning_rate: PositiveFloat = field(
        default=5e-6, metadata=help_text("η of the prompt, or of teacher_lora instead of it")
    )


@dataclass(frozen=True, kw_only=True)
class StudentLoraConfig(LoraConfig):
    rank: NonNegativeInt = field(
        default=0,
        metadata=help_text("r of adapters that are trained instead of the student's weights; 0 disables them"),
    )


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    """The configuration of a run; `kd.methods.load_config` adds the methods' sections to it."""

    method: str = field(
        default="promptkd",
        metadata=help_text("training algorithm: a built-in name, or package.module:Class for your own"),
    )
    model: ModelConfig
    data: DataConfig
    run: RunConfig
    student_lora: StudentLoraConfig = field(default_factory=StudentLoraConfig)
    generation: GenerationConfig = GenerationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    engine: EngineConfig = EngineConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()

    def section(self, kind: type[SectionType]) -> SectionType:
        """The section of this type, such as a method's settings.

        Raises:
            LookupError: the configuration was made without it.
        """
        for value in vars(self).values():
            if type(value) is kind:
                return value
        raise LookupError(f"the configuration has no section {kind.__name__}")

    def __post_init__(self) -> None:
        """Refuse fields that contradict each other.

        Raises:
            UserError: the first contradiction.
        """
        if self.data.max_prompt_tokens >= self.data.max_sequence_tokens:
            raise UserError(
                f"data.max_prompt_tokens is {self.data.max_prompt_tokens}, which leaves no room for a response"
                f" in data.max_sequence_tokens={self.data.max_sequence_tokens}; lower the first or raise the second"
            )
        layout, parallel = self.generation.layout, self.generation.tensor_parallel_size
        if layout == "tensor_parallel" and parallel == 1:
            raise UserError("generation.layout=tensor_parallel needs generation.tensor_parallel_size of at least 2")
        if layout in ("gathered", "zero3") and parallel > 1:
            raise UserError(
                f"generation.tensor_parallel_size={parallel} has no effect with generation.layout={layout};"
                " set it to 1, or set the layout to tensor_parallel or auto"
            )
        if self.validation.metric == "accuracy" and self.validation.answer_pattern is None:
            raise UserError("validation.metric=accuracy needs validation.answer_pattern, such as '#### (.+)'")
        if self.schedule.epochs is None and self.schedule.warmup_steps > self.schedule.steps:
            raise UserError(
                f"schedule.warmup_steps={self.schedule.warmup_steps} is more than"
                f" schedule.steps={self.schedule.steps}; lower the warm-up or train longer"
            )

    def check_response_room(self) -> None:
        """Refuse rollouts that training would have to truncate.

        Raises:
            UserError: prompt and response together may exceed data.max_sequence_tokens.
        """
        longest = self.data.max_prompt_tokens + self.generation.max_new_tokens
        if longest > self.data.max_sequence_tokens:
            raise UserError(
                f"data.max_prompt_tokens + generation.max_new_tokens is {longest}, more than"
                f" data.max_sequence_tokens={self.data.max_sequence_tokens}; lower one or raise the last"
            )
