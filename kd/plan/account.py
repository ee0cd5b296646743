"""The byte account of a step: what each phase holds on one rank's device, from shapes alone."""

from collections.abc import Mapping
from functools import cached_property

from kd.losses.fused import block_bytes
from kd.plan.run import PlannedRun
from kd.plan.sizes import EngineBytes
from kd.rollout.inference_copy import GATHER_BYTES, blank_copy, copy_bytes
from kd.rollout.placement import cache_bytes_per_token
from kd.zero.recorder import PHASES, Phase

_LOGITS_ITEMSIZE = 12
"""Bytes per entry of the logits while tokens are drawn."""
_LOSS_BLOCKS = 8
"""Blocks of the loss that are alive at once on a GPU; the passes count a CPU's small ones."""


class Account(PlannedRun):
    """The bytes of a run on one rank of a machine."""

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
            "gradient buffers": sum(engine.held_gradient for engine in self.engines.values()),
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

    def _generation(self) -> dict[str, int]:
        fake = self.fake("student")
        prefill = self.fakes.peak(
            fake, "inference", rows=self.decoding_rows, prompt=self.config.data.max_prompt_tokens, response=1
        )
        parts = {
            "KV cache": self.decoding_rows * self.decoding_slots * cache_bytes_per_token(fake.model),
            "activations": prefill,
            "logits": self.decoding_rows * fake.head.vocabulary_size * _LOGITS_ITEMSIZE,
        }
        if self._copy_bytes:
            # Where the student is gathered once, the copy is filled from it.
            refresh = 0 if self.gathers_once(self.student) else max(GATHER_BYTES, self.student.largest_bytes)
            parts |= {"inference copy": self._copy_bytes, "parameters being copied": refresh}
        if self.teacher is not None and self.method.decodes_with_teacher(self.config):
            slots = self.decoding_rows * self.decoding_slots
            parts["teacher KV cache"] = slots * cache_bytes_per_token(self.fake("teacher").model)
            parts |= self._gathered(self.teacher, "teacher")
        return parts | self._gathered_student()

    @property
    def micro_rows(self) -> int:
        """Sequences of the longest length in a micro-batch."""
        return self.config.schedule.rows_per_pass(self.slots)

    def _teacher(self, teacher: EngineBytes) -> dict[str, int]:
        is_collective = teacher.stage == 3 and not self.gathers_once(teacher)
        budget = self.config.engine.inference_batch_tokens // self.slots
        rows = max(1, min(self.rows, budget)) if is_collective else self.micro_rows
        slots = self.method.teacher_slots(self.config)
        activations = self.fakes.peak(
            self.fake("teacher"),
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
            self.fake("teacher"),
            "prompt_training",
            rows=self.micro_rows,
            prompt=self.config.data.max_prompt_tokens,
            response=self.response_tokens,
            loss_chunk_mib=self.config.engine.loss_chunk_mib,
            target=self.fake("student"),
            num_prompt_tokens=self.method.teacher_slots(self.config),
        )
        held = self._gathered(teacher, "teacher") | self._kept_student() | self._outputs()
        return held | {"activations, loss": activations + self._loss_blocks}

    def _student(self) -> dict[str, int]:
        once = self.gathers_once(self.student)
        activations = self.fakes.peak(
            self.fake("student"),
            "student_training",
            rows=self.micro_rows,
            prompt=self.config.data.max_prompt_tokens,
            response=self.response_tokens,
            loss_chunk_mib=self.config.engine.loss_chunk_mib,
            target=None if self.teacher is None else self.fake("teacher"),
            reduction=self.student.reduction(gathered_once=once),
        )
        return {
            **self._gathered_student(),
            **self._outputs(with_head=True),
            **self._student_gradient(),
            # The gradient is reduced after the last backward pass.
            "activations, loss": max(activations + self._loss_blocks, self.student.all_reduction),
        }

    def _optimizer(self) -> dict[str, int]:
        """One reduction of a gradient that is kept in full, then the update; or the update alone."""
        once = self.gathers_once(self.student)
        reduction = {**self._student_gradient(), "reduction": self.student.final_reduction(gathered_once=once)}
        update = {"update": self.student.update}
        outputs = self._outputs(with_head=True)
        if self.student.stage < 2:
            return {**outputs, **self._student_gradient(), **update}
        # The update's own copy of a partitioned gradient replaces it.
        reduction |= self._kept_student()
        return outputs | max(reduction, update, key=lambda parts: sum(parts.values()))

    @property
    def _loss_blocks(self) -> int:
        return _LOSS_BLOCKS * block_bytes("cuda") if self.machine.on_gpu else 0

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
                num_bytes += self.fake("teacher").head.weight.nbytes
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
        weight = self.fake(role).head.weight
        return weight.shape[1] * weight.element_size()
