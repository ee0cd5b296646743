"""From the name of a method to the teacher and the algorithm that it needs."""

from collections.abc import Callable

from kd.config.schema import Config
from kd.data.loader import BatchLoader, ExampleBatch
from kd.methods.distillm import DistiLLM
from kd.methods.gkd import GKD
from kd.methods.kd import KD
from kd.methods.method import Groundwork, Method, Targets, own_responses
from kd.methods.minillm import MiniLLM
from kd.methods.promptkd import PromptKD
from kd.methods.seqkd import SeqKD
from kd.methods.sft import SupervisedFineTuning
from kd.methods.targets import mixed_responses, sampled_responses
from kd.models.student import Student
from kd.models.teacher import AdaptedTeacher, LoraTeacher, PromptedTeacher, Teacher
from kd.models.vocabulary import SharedVocabulary
from kd.rollout.sampler import Sampler


def load_teacher(config: Config, *, vocabulary: SharedVocabulary) -> Teacher | None:
    """The teacher's engine, with a soft prompt or adapters where the method tunes them.

    Raises:
        UserError: the DeepSpeed JSON, the checkpoint or the prompt's initialisation cannot be used.
    """
    if config.model.teacher is None or (config.method == "seqkd" and config.seqkd.ratio == 0):
        return None
    if config.method != "promptkd":
        return Teacher(config)
    if config.teacher_lora.is_on:
        return LoraTeacher(config)
    return PromptedTeacher(config, tokenizer=vocabulary.tokenizer)


def make_method(
    config: Config,
    *,
    student: Student,
    teacher: Teacher | None,
    sampler: Sampler | None,
    windows: Callable[[int], ExampleBatch],
    corpus: BatchLoader | None,
    groundwork: Groundwork,
) -> Method:
    """The algorithm of `config.method`, with the sequences that it learns from.

    Args:
        windows: this rank's training rows by number, for methods that sample ahead.
        corpus: windows of pre-training text, for methods that learn from it too.
    """
    if teacher is None:
        return SupervisedFineTuning(config, student=student, targets=own_responses, groundwork=groundwork)
    # Where the prompt is tuned on other sequences than the sampled ones, the student has to read them anew.
    keeps_hidden = isinstance(teacher, AdaptedTeacher) and config.prompt.student_fraction == 1
    targets: Targets = own_responses
    if config.samples_responses and sampler is not None:
        targets = sampled_responses(sampler, seed=config.run.seed, keeps_hidden=keeps_hidden)
        if config.method == "gkd" and config.gkd.student_fraction < 1:
            fraction = config.gkd.student_fraction
            targets = mixed_responses(sampler, seed=config.run.seed, student_fraction=fraction)
    if isinstance(teacher, AdaptedTeacher):
        return PromptKD(config, student=student, teacher=teacher, targets=targets, groundwork=groundwork)
    if config.method == "distillm":
        return DistiLLM(config, student=student, teacher=teacher, sampled=targets, groundwork=groundwork)
    if config.method == "minillm":
        return MiniLLM(
            config,
            student=student,
            teacher=teacher,
            targets=targets,
            windows=windows,
            corpus=corpus,
            groundwork=groundwork,
        )
    algorithms: dict[str, type[KD] | type[SeqKD] | type[GKD]] = {"kd": KD, "seqkd": SeqKD, "gkd": GKD}
    return algorithms[config.method](config, student=student, teacher=teacher, targets=targets, groundwork=groundwork)
