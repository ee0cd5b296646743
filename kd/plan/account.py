"""The byte account of a step: what each phase holds on one rank's device, from shapes alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from kd.config.schema import Config
from kd.methods import find_method
from kd.methods.base import Method
from kd.plan.passes import FakeModel
from kd.plan.shapes import model_shapes
from kd.plan.sizes import EngineBytes
from kd.rollout.inference_copy import GATHER_BYTES, blank_copy, copy_bytes
from kd.rollout.placement import LayoutChoice, cache_bytes_per_token, choose_layout
from kd.zero.config import Json, student_deepspeed_config, teacher_deepspeed_config, training_engine_config
from kd.zero.recorder import PHASES, Phase
from kd.zero.residency import stays_resident

RESERVED_BYTES = 2 * 2**30
"""Of a GPU, beside tensors: CUDA's context, NCCL's buffers, cuBLAS's workspace and the allocator's fragments."""
_LOGITS_ITEMSIZE = 12
"""Bytes per entry of the logits while tokens are drawn."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The devices of a run."""

    num_gpus: int
    gpu_bytes: int
    gpus_per_host: int
    on_gpu: bool = True
    """False for ranks on CPUs, where nothing is reserved."""

    @property
    def hosts(self) -> list[list[int]]:
        """The ranks of each host."""
        ranks = list(range(self.num_gpus))
        return [ranks[start : start + self.gpus_per_host] for start in range(0, self.num_gpus, self.gpus_per_host)]

    @property
    def usable_bytes(self) -> int:
        return self.gpu_bytes - (RESERVED_BYTES if self.on_gpu else 0)


class FakeModels:
    """Fake models by their settings, which several accounts share; a 13B takes a second to build."""

    def __init__(self) -> None:
        self._models: dict[tuple[object, ...], FakeModel] = {}
        self._peaks: dict[tuple[object, ...], int] = {}

    def model(self, config: Config, role: str) -> FakeModel:
        """The student or the teacher."""
        settings, lora = config.model, config.student_lora
        name = settings.student if role == "student" else str(settings.teacher)
        is_student = role == "student"
        key = (role, name, settings.dtype, settings.gradient_checkpointing, settings.student_dropout, lora)
        if key not in self._models:
            self._models[key] = FakeModel(
                model_shapes(name, trust_remote_code=settings.trust_remote_code),
                name=name,
                dtype=settings.dtype,
                checkpointing=settings.gradient_checkpointing,
                trust_remote_code=settings.trust_remote_code,
                keep_dropout=is_student and settings.student_dropout,
                lora=lora if is_student and lora.is_on else None,
            )
            if not is_student:
                self._models[key].model.requires_grad_(False)
        return self._models[key]

    def peak(self, model: FakeModel, passes: str, **sizes: object) -> int:
        """Peak bytes of a pass of the model; `passes` names the method that measures it."""
        key = (id(model), passes, *sizes.items())
        if key not in self._peaks:
            self._peaks[key] = getattr(model, passes)(**sizes)
        return self._peaks[key]


@dataclass(frozen=True, kw_only=True)
class Account:
    """The bytes of a run on one rank of a machine."""

    config: Config
    machine: Machine
    fakes: FakeModels = field(default_factory=FakeModels, compare=False)

    @cached_property
    def method(self) -> type[Method]:
        return find_method(self.config.method)

    @cached_property
    def student(self) -> EngineBytes:
        return self._engine("student", training_engine_config(student_deepspeed_config(self.config)), trained=True)

    @cached_property
    def teacher(self) -> EngineBytes | None:
        if not self.method.needs(self.config).teacher:
            return None
        return self._engine("teacher", teacher_deepspeed_config(self.config), trained=self.trains_teacher)

    def _engine(self, role: str, settings: Json, *, trained: bool) -> EngineBytes:
        return EngineBytes.of(
            self.fakes.model(self.config, role),
            settings=settings,
            num_ranks=self.machine.num_gpus,
            dtype=self.config.model.dtype,
            has_optimizer=trained,
            on_gpu=self.machine.on_gpu,
        )

    @cached_property
    def trains_teacher(self) -> bool:
        """Whether a soft prompt or adapters of the teacher are trained."""
        # A method that trains a part of the teacher loads it itself.
        return "load_teacher" in vars(self.method)

    @property
    def rolls_out(self) -> bool:
        needs = self.method.needs(self.config)
        return (needs.rollouts and self.config.data.responses is None) or self.config.samples_validation

    @cached_property
    def free_bytes(self) -> int:
        """What the models leave once the first update has been made."""
        used = sum(engine.weights + engine.master + engine.held_gradient + engine.moments for engine in self._engines)
        return self.machine.usable_bytes - used

    @property
    def _engines(self) -> list[EngineBytes]:
        return [self.student] if self.teacher is None else [self.student, self.teacher]

    def gathers_once(self, engine: EngineBytes) -> bool:
        """Whether a partitioned model is gathered once for a global batch, as `choose_gathering` decides."""
        gather, num_bytes = (
            self.config.engine.gather,
            engine.full + (engine.gradient(gathered_once=True) if engine.has_optimizer else 0),
        )
        fits = stays_resident(num_bytes, free_bytes=self.free_bytes) and not engine.offloads_parameters
        return engine.stage == 3 and (gather == "model" or (gather == "auto" and fits))

    @cached_property
    def layout(self) -> LayoutChoice | None:
        """The layout of the student's weights during rollouts; None for weights in place, or without rollouts."""
        if self.student.stage < 3 or not self.rolls_out:
            return None
        fake = self.fakes.model(self.config, "student").model
        kv_cache = self.config.generation.max_batch_tokens * cache_bytes_per_token(fake)
        return choose_layout(
            blank_copy(fake),
            settings=self.config.generation,
            free_bytes=self.free_bytes - kv_cache,
            hosts=self.machine.hosts,
        )

    @cached_property
    def phases(self) -> Mapping[Phase, Mapping[str, int]]:
        """Bytes of each part in each phase that the step has."""
        parts = {
            "generation": self._generation() if self.rolls_out else None,
            "teacher": None if self.teacher is None else self._teacher(self.teacher),
            "prompt": self._prompt(self.teacher) if self.teacher is not None and self.trains_teacher else None,
            "student": self._student(),
            "optimizer": self._optimizer(),
        }
        held = self._held()
        return {phase: {**held, **parts[phase]} for phase in PHASES if parts[phase] is not None}  # type: ignore[dict-item]

    @property
    def peak_phase(self) -> Phase:
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def peak(self) -> int:
        """Bytes of the phase that takes most."""
        return sum(self.phases[self.peak_phase].values())

    @property
    def fits(self) -> bool:
        return self.peak <= self.machine.usable_bytes

    def _held(self) -> dict[str, int]:
        """What exists in every phase."""
        held = {
            "student weights": self.student.weights,
            "student master weights": self.student.master,
            "student AdamW moments": self.student.moments,
            "gradient buffers": sum(engine.held_gradient for engine in self._engines),
        }
        if self.teacher is not None:
            held["teacher weights"] = self.teacher.weights
        if self.config.generation.keep_weights:
            held["inference copy"] = self._copy_bytes
        return held

    @property
    def _copy_bytes(self) -> int:
        if self.layout is None or self.layout.layout == "zero3":
            return 0
        return copy_bytes(blank_copy(self.fakes.model(self.config, "student").model), num_ranks=self.layout.num_ranks)

    @property
    def rows(self) -> int:
        """Sequences of a global batch on one rank."""
        return self.config.schedule.global_batch // self.machine.num_gpus

    @property
    def response_tokens(self) -> int:
        """Longest response."""
        data, generation = self.config.data, self.config.generation
        room = data.max_sequence_tokens - data.max_prompt_tokens
        return generation.max_new_tokens if self.method.needs(self.config).rollouts else room

    @property
    def slots(self) -> int:
        """Longest sequence of a batch."""
        return self.config.data.max_prompt_tokens + self.response_tokens

    @property
    def decoding_rows(self) -> int:
        """Rows that are decoded together."""
        data, generation = self.config.data, self.config.generation
        wanted = self.rows if self.method.needs(self.config).rollouts else 0
        if self.config.samples_validation:
            wanted = max(wanted, -(-self.config.validation.rows // self.machine.num_gpus))
        slots = data.max_prompt_tokens + generation.max_new_tokens
        return max(1, min(wanted, generation.max_batch_tokens // slots))

    def _generation(self) -> dict[str, int]:
        generation, fake = self.config.generation, self._fake("student")
        slots = self.config.data.max_prompt_tokens + generation.max_new_tokens
        prefill = self.fakes.peak(
            fake, "inference", rows=self.decoding_rows, prompt=self.config.data.max_prompt_tokens, response=1
        )
        parts = {
            "KV cache": self.decoding_rows * slots * cache_bytes_per_token(fake.model),
            "activations": prefill,
            "logits": self.decoding_rows * fake.head.vocabulary_size * _LOGITS_ITEMSIZE,
        }
        if self._copy_bytes:
            # Where the student is gathered once, the copy is filled from it.
            refresh = 0 if self.gathers_once(self.student) else max(GATHER_BYTES, self.student.largest_bytes)
            parts |= {"inference copy": self._copy_bytes, "parameters being copied": refresh}
        return parts | self._gathered_student()

    def _teacher(self, teacher: EngineBytes) -> dict[str, int]:
        is_collective = teacher.stage == 3 and not self.gathers_once(teacher)
        budget = self.config.engine.inference_batch_tokens // self.slots
        rows = max(1, min(self.rows, budget)) if is_collective else self.config.schedule.micro_batch
        slots = self.method.teacher_slots(self.config)
        activations = self.fakes.peak(
            self._fake("teacher"),
            "inference",
            rows=rows,
            prompt=self.config.data.max_prompt_tokens + slots,
            response=self.response_tokens,
        )
        return (
            self._gathered(teacher, "teacher") | self._kept_student() | self._outputs() | {"activations": activations}
        )

    def _prompt(self, teacher: EngineBytes) -> dict[str, int]:
        activations = self.fakes.peak(
            self._fake("teacher"),
            "prompt_training",
            rows=self.config.schedule.micro_batch,
            prompt=self.config.data.max_prompt_tokens,
            response=self.response_tokens,
            loss_chunk_mib=self.config.engine.loss_chunk_mib,
            target=self._fake("student"),
            num_prompt_tokens=self.method.teacher_slots(self.config),
        )
        held = self._gathered(teacher, "teacher") | self._kept_student() | self._outputs()
        return held | {"activations, loss": activations}

    def _student(self) -> dict[str, int]:
        once = self.gathers_once(self.student)
        activations = self.fakes.peak(
            self._fake("student"),
            "student_training",
            rows=self.config.schedule.micro_batch,
            prompt=self.config.data.max_prompt_tokens,
            response=self.response_tokens,
            loss_chunk_mib=self.config.engine.loss_chunk_mib,
            target=None if self.teacher is None else self._fake("teacher"),
            reduction=self.student.reduction(gathered_once=once),
        )
        return {
            **self._gathered_student(),
            **self._outputs(with_head=True),
            **self._student_gradient(),
            # The gradient is reduced after the last backward pass.
            "activations, loss": max(activations, self.student.all_reduction),
        }

    def _optimizer(self) -> dict[str, int]:
        """One reduction of a gradient that is kept in full, then the update; or the update alone."""
        once = self.gathers_once(self.student)
        reduction = {**self._student_gradient(), "reduction": self.student.final_reduction(gathered_once=once)}
        update = {"update": self.student.update}
        outputs = self._outputs(with_head=True)
        if self.student.stage < 3:
            return {**outputs, **self._student_gradient(), **update}
        reduction |= self._kept_student()
        return outputs | max(reduction, update, key=lambda parts: sum(parts.values()))

    def _student_gradient(self) -> dict[str, int]:
        return {"student gradient": self.student.gradient(gathered_once=self.gathers_once(self.student))}

    def _outputs(self, *, with_head: bool = False) -> dict[str, int]:
        """Hidden states that a rank keeps for its share of the global batch.

        With the head of a partitioned teacher, which they keep, where the teacher itself is not gathered.
        """
        num_tokens, num_bytes = self.rows * self.response_tokens, 0
        if self.teacher is not None:
            # With and without the soft prompt.
            num_bytes += num_tokens * self._hidden_bytes("teacher") * (2 if self.trains_teacher else 1)
            if self.teacher.stage == 3 and (with_head or not self.gathers_once(self.teacher)):
                num_bytes += self._fake("teacher").head.weight.nbytes
        if self.trains_teacher:
            num_bytes += num_tokens * self._hidden_bytes("student")
        return {"outputs": num_bytes} if num_bytes else {}

    def _gathered_student(self) -> dict[str, int]:
        return self._gathered(self.student, "student")

    def _kept_student(self) -> dict[str, int]:
        """A student that is gathered once stays gathered while the teacher works."""
        return self._gathered_student() if self.gathers_once(self.student) else {}

    def _gathered(self, engine: EngineBytes, role: str) -> dict[str, int]:
        if engine.stage < 3:
            return {}
        num_bytes = engine.full if self.gathers_once(engine) else engine.gathered_by_layer
        return {f"gathered {role}": num_bytes}

    def _hidden_bytes(self, role: str) -> int:
        weight = self._fake(role).head.weight
        return weight.shape[1] * weight.element_size()

    def _fake(self, role: str) -> FakeModel:
        return self.fakes.model(self.config, role)
