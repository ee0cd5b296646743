"""The sections of a run's configuration that all methods share: type, default, unit and symbol of each field.

`kd.config.load` checks types and ranges of single values, `Config.__post_init__` rules between fields.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from kd.config.fields import (
    Count,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    Probability,
    Section,
    option,
    required,
)
from kd.errors import UserError

ColumnRole = Literal["prompt", "input", "response", "messages", "system"]
AttentionName = Literal["auto", "sdpa", "eager", "flash_attention_2"]
SectionType = TypeVar("SectionType", bound=Section)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    student: str = required(help="student q_θ: from_pretrained directory or hub name")
    teacher: str | None = option(None, help="teacher p: directory or hub name; null for sft")
    dtype: Literal["bf16", "fp16", "fp32"] = option("bf16", help="weight and activation precision; fp16 needs a GPU")
    attention: AttentionName = option(
        "auto", help="attention of both models, whatever config.json says: auto is sdpa, or eager where it must be"
    )
    student_dropout: bool = option(False, help="keep the student's dropout; the teacher's is 0")
    gradient_checkpointing: bool = option(True, help="recompute activations in the backward pass to save memory")
    trust_remote_code: bool = option(False, help="run model code that comes with a checkpoint")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    train: str | None = option(
        None, help="training rows: file (.jsonl, .json, .csv, .parquet, .gz), directory, pattern, or hub name[:split]"
    )
    validation: str | None = option(None, help="validation rows, as data.train; null for none")
    columns: Mapping[ColumnRole, str] | None = option(
        None, help="names of columns, such as '{prompt: question, response: answer}'; null recognises usual names"
    )
    turns: Literal["last", "all"] = option(
        "last", help="assistant turns of a conversation to learn: the last, or each of them as a row of its own"
    )
    template: str = option(
        "alpaca", help="alpaca (paper's Table 5), chat (the tokenizer's), plain (the prompt itself), or a Jinja file"
    )
    template_options: Mapping[str, Any] | None = option(
        None, help="variables of the chat template, such as '{enable_thinking: false}'"
    )
    system_prompt: str | None = option(None, help="system turn of conversations that have none; chat templates only")
    max_prompt_tokens: Count = option(256, help="longest prompt x [tokens]")
    max_sequence_tokens: Count = option(512, help="longest prompt and response together [tokens]")
    overlong: Literal["drop", "truncate"] = option("drop", help="longer prompts: drop the row, or keep the last tokens")
    end_of_sequence: str | None = option(
        None, help="token that ends each response of the data; null for the tokenizer's end-of-sequence token"
    )
    responses: str | None = option(None, help="JSON lines `prompt`, `response` that replace data.train and rollouts")


@dataclass(frozen=True, kw_only=True)
class GenerationConfig(Section):
    layout: Literal["auto", "gathered", "tensor_parallel", "zero3"] = option(
        "auto",
        help="weights during rollouts: gathered (a full copy per rank), tensor_parallel (a copy divided over a group),"
        " zero3 (in place), auto (in place if gathered once, else the first of these that fits)",
    )
    tensor_parallel_size: Count = option(1, help="ranks of a host that share a copy; with auto, 1 means as few as fit")
    max_new_tokens: Count = option(256, help="longest response y [tokens, EOS included]")
    temperature: PositiveFloat = option(1.0, help="logits are divided by this before sampling")
    top_p: Probability = option(1.0, help="nucleus sampling: smallest token set with this probability; 1 disables it")
    top_k: NonNegativeInt = option(0, help="sample from the k most likely tokens; 0 disables it")
    max_batch_tokens: Count = option(16384, help="rows × (prompt + max_new_tokens) decoded together per rank [tokens]")
    keep_weights: bool = option(True, help="keep the inference copy between steps; false frees its memory for training")
    cuda_graphs: bool = option(
        False, help="repeat each token's kernels as a CUDA graph; needs a GPU and the whole student on each rank"
    )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section):
    name: Literal["adamw", "sgd"] = option("adamw", help="update rule of student and prompt")
    learning_rate: PositiveFloat = option(5e-6, help="η of the student")
    weight_decay: NonNegativeFloat = option(0.01, help="student's matrices only; vectors and the soft prompt have none")
    grad_clip: NonNegativeFloat = option(1.0, help="maximum gradient norm of student and of prompt; 0 disables it")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Section):
    steps: Count = option(1000, help="K, number of optimizer steps")
    epochs: PositiveFloat | None = option(None, help="epochs over the data; replaces schedule.steps")
    warmup_steps: NonNegativeInt = option(100, help="steps of linear learning rate warm-up from 0")
    decay: Literal["constant", "linear", "cosine"] = option("constant", help="schedule after warm-up (to 0 at step K)")
    global_batch: Count = option(64, help="sequences of one optimizer step, over all ranks")
    micro_batch: Count = option(4, help="sequences in one forward and backward pass of one rank")
    micro_tokens: Count | None = option(
        None, help="instead of schedule.micro_batch: padded tokens in one forward and backward pass of one rank"
    )
    packing: bool = option(
        False, help="pack the sequences of schedule.micro_tokens tokens into one row without padding"
    )

    def rows_per_pass(self, num_tokens: int) -> int:
        """Sequences of `num_tokens` tokens in one forward and backward pass."""
        return self.micro_batch if self.micro_tokens is None else max(1, self.micro_tokens // num_tokens)

    def divides(self, *, num_ranks: int) -> bool:
        """Whether each rank has as many sequences, and full micro-batches of `micro_batch`."""
        return self.global_batch % (num_ranks * (self.micro_batch if self.micro_tokens is None else 1)) == 0

    def refusal(self, *, num_ranks: int) -> str:
        """A sentence for a global batch that the ranks do not divide."""
        parts = "" if self.micro_tokens is not None else f"schedule.micro_batch={self.micro_batch} × "
        return (
            f"schedule.global_batch={self.global_batch} is not {parts}{num_ranks} ranks × an integer; change one of"
            " them"
        )


@dataclass(frozen=True, kw_only=True)
class EngineConfig(Section):
    student: str = option("ds_configs/zero3.json", help="DeepSpeed JSON: ZeRO, offload, communication")
    teacher: str = option("ds_configs/zero3.json", help="DeepSpeed JSON of the teacher; ZeRO stage 3, or 0")
    gather: Literal["auto", "layer", "model"] = option("auto", help="what ZeRO-3 gathers at a time; auto: by memory")
    inference_batch_tokens: Count = option(16384, help="rows × slots of a partitioned model's inference batch [tokens]")
    loss_chunk_mib: Count = option(128, help="size of one [chunk, vocabulary] fp32 tensor of the loss [MiB]")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig(Section):
    every: Count = option(100, help="steps between validations (and one after the last step)")
    rows: Count = option(1000, help="number of validation rows, from the start of the file")
    generate: bool = option(True, help="sample and score responses; else only the loss is measured, and selects best/")
    metric: Literal["rougeL", "rougeL_unicode", "exact_match", "accuracy", "loss"] = option(
        "rougeL", help="what selects best/: a metric of the sampled responses, or the loss"
    )
    answer_pattern: str | None = option(None, help="accuracy: regular expression whose first group is the answer")
    seed: NonNegativeInt = option(10, help="seed of the sampled validation responses")


@dataclass(frozen=True, kw_only=True)
class CheckpointsConfig(Section):
    every: Count = option(100, help="steps between checkpoints (and one after the last step)")
    keep: Count = option(2, help="number of checkpoints kept on disk, the latest ones")
    export_every: Count | None = option(None, help="steps between exports of the student to exports/; null for none")


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    dir: str = required(help="directory that the run writes to")
    seed: NonNegativeInt = option(42, help="seed of data order, sampling and random initialisation")
    resume: Literal["auto", "changed", "never"] = option(
        "auto", help="auto: resume a used run.dir; changed: also with other learning rates; never: refuse it"
    )
    log_every: Count = option(1, help="steps between lines of metrics.jsonl")
    max_hours: PositiveFloat | None = option(None, help="hours after which to checkpoint and stop; rerun to resume")
    tensorboard: bool = option(True, help="write TensorBoard curves when tensorboard is installed")
    wandb: str | None = option(None, help="Weights & Biases project to report to; null for none")


@dataclass(frozen=True, kw_only=True)
class LoraConfig(Section):
    rank: NonNegativeInt = option(0, help="r of the adapters; 0 disables them")
    alpha: PositiveFloat = option(32.0, help="the adapters' update is scaled by alpha / rank")
    targets: tuple[str, ...] | None = option(None, help="adapted layers, or [all-linear]; null for peft's default")

    @property
    def is_on(self) -> bool:
        return self.rank > 0


@dataclass(frozen=True, kw_only=True)
class SoftPromptConfig(Section):
    length: Count = option(7, help="m, number of soft prompt tokens")
    init: Literal["text", "padding", "random"] = option("text", help="initialisation of P")
    init_text: str = option("Suppose you are a student.", help="text whose embeddings initialise P")
    learning_rate: PositiveFloat = option(5e-6, help="η of the prompt, or of teacher_lora instead of it")


@dataclass(frozen=True, kw_only=True)
class StudentLoraConfig(LoraConfig):
    rank: NonNegativeInt = option(0, help="r of adapters trained instead of the student's weights; 0 disables them")


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    """The configuration of a run; `kd.methods.load_config` adds the methods' sections to it."""

    method: str = option("promptkd", help="training algorithm: a built-in name, or package.module:Class for your own")
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

    @property
    def samples_validation(self) -> bool:
        """Whether validation samples responses of the student."""
        return self.data.validation is not None and self.validation.generate

    def __post_init__(self) -> None:
        """Raise a UserError for the first fields that contradict each other."""
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
        if self.schedule.packing and self.schedule.micro_tokens is None:
            raise UserError("schedule.packing=true needs schedule.micro_tokens, the tokens of a micro-batch; set it")
        if self.validation.metric == "accuracy" and self.validation.answer_pattern is None:
            raise UserError("validation.metric=accuracy needs validation.answer_pattern, such as '#### (.+)'")
        if self.schedule.epochs is None and self.schedule.warmup_steps > self.schedule.steps:
            raise UserError(
                f"schedule.warmup_steps={self.schedule.warmup_steps} is more than"
                f" schedule.steps={self.schedule.steps}; lower the warm-up or train longer"
            )

    def check_response_room(self) -> None:
        """Raise a UserError if a prompt and its rollout may exceed data.max_sequence_tokens."""
        longest = self.data.max_prompt_tokens + self.generation.max_new_tokens
        if longest > self.data.max_sequence_tokens:
            raise UserError(
                f"data.max_prompt_tokens + generation.max_new_tokens is {longest}, more than"
                f" data.max_sequence_tokens={self.data.max_sequence_tokens}; lower one or raise the last"
            )
