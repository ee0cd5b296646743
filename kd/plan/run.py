"""A run before it starts: its models without storage, its engines, and the choices that `auto` will make."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from kd.config.schema import Config
from kd.methods import find_method
from kd.methods.base import Method
from kd.plan.passes import FakeModel
from kd.plan.shapes import model_shapes
from kd.plan.sizes import EngineBytes
from kd.rollout.inference_copy import blank_copy
from kd.rollout.placement import LayoutChoice, cache_bytes_per_token, choose_layout
from kd.zero.config import Json, student_deepspeed_config, teacher_deepspeed_config, training_engine_config
from kd.zero.memory import leaves_room

RESERVED_BYTES = 2 * 2**30
"""Of a GPU, beside tensors: CUDA's context, NCCL's buffers, cuBLAS's workspace and the allocator's fragments."""


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
        passes = (settings.attention, settings.gradient_checkpointing, settings.student_dropout)
        key = (role, name, settings.dtype, passes, lora)
        if key not in self._models:
            self._models[key] = FakeModel(
                model_shapes(name, trust_remote_code=settings.trust_remote_code),
                name=name,
                dtype=settings.dtype,
                checkpointing=settings.gradient_checkpointing,
                trust_remote_code=settings.trust_remote_code,
                attention=settings.attention,
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
class PlannedRun:
    """A configuration on a machine."""

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

    @property
    def adapts_student(self) -> bool:
        return self.config.student_lora.is_on

    @cached_property
    def free_bytes(self) -> int:
        """What the models leave once the first update has been made."""
        used = sum(
            engine.weights + engine.master + engine.held_gradient + engine.moments for engine in self.engines.values()
        )
        return self.machine.usable_bytes - used

    @property
    def engines(self) -> Mapping[str, EngineBytes]:
        return ({} if self.teacher is None else {"teacher": self.teacher}) | {"student": self.student}

    @cached_property
    def _gathered_roles(self) -> set[str]:
        """The partitioned models that are gathered once for a global batch, as `choose_gathering` decides."""
        gather, free_bytes, roles = self.config.engine.gather, self.free_bytes, set()
        for role, engine in self.engines.items():
            fits = leaves_room(engine.resident, free_bytes=free_bytes) and not engine.offloads_parameters
            if engine.stage == 3 and (gather == "model" or (gather == "auto" and fits)):
                roles.add(role)
                free_bytes -= engine.resident
        return roles

    def gathers_once(self, engine: EngineBytes) -> bool:
        """Whether a partitioned model is gathered once for a global batch."""
        return any(self.engines[role] is engine for role in self._gathered_roles)

    @cached_property
    def layout(self) -> LayoutChoice | None:
        """The layout of the student's weights during rollouts; None for weights in place, or without rollouts."""
        if self.student.stage < 3 or not self.rolls_out:
            return None
        if self.config.generation.layout == "auto" and self.gathers_once(self.student) and not self.adapts_student:
            return None
        fake = self.fakes.model(self.config, "student").model
        kv_cache = self.config.generation.max_batch_tokens * cache_bytes_per_token(fake)
        return choose_layout(
            blank_copy(fake),
            settings=self.config.generation,
            free_bytes=self.free_bytes - kv_cache - sum(self.engines[role].resident for role in self._gathered_roles),
            hosts=self.machine.hosts,
        )

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
    def decoding_slots(self) -> int:
        """Tokens of a row with the longest prompt and response."""
        return self.config.data.max_prompt_tokens + self.config.generation.max_new_tokens

    @property
    def decoding_rows(self) -> int:
        """Rows that are decoded together."""
        wanted = self.rows if self.method.needs(self.config).rollouts else 0
        if self.config.samples_validation:
            wanted = max(wanted, -(-self.config.validation.rows // self.machine.num_gpus))
        return max(1, min(wanted, self.config.generation.max_batch_tokens // self.decoding_slots))

    def fake(self, role: str) -> FakeModel:
        return self.fakes.model(self.config, role)
