"""Rules between sections of the configuration that belong to single ways to train."""

from typing import TYPE_CHECKING

from kd.errors import UserError

if TYPE_CHECKING:
    from kd.config.schema import Config


def check_sources(config: "Config") -> None:
    """Refuse data that the method cannot learn from.

    Raises:
        UserError: the first that is missing or without effect.
    """
    if config.method == "seqkd" and config.data.responses is None:
        raise UserError(
            "method seqkd learns from the teacher's responses: set data.responses, the file that"
            " launch/generate_pseudo_data.py writes"
        )
    if config.method == "gkd" and config.gkd.sft_weight > 0 and config.data.responses is not None:
        raise UserError(
            "gkd.sft_weight is about the responses of data.train, but data.responses takes its place; set one of"
            " them only"
        )
    if config.method == "distillm" and config.samples_responses:
        if config.data.validation is None:
            raise UserError("method distillm follows the validation loss; set data.validation")
        if config.distillm.buffer_rows < config.schedule.global_batch:
            raise UserError(
                f"distillm.buffer_rows={config.distillm.buffer_rows} is less than schedule.global_batch="
                f"{config.schedule.global_batch}; a window could not be drawn from it"
            )


def check_adaptation(config: "Config") -> None:
    """Refuse settings of soft prompts and adapters that the run has not.

    Raises:
        UserError: the first of them.
    """
    if config.teacher_lora.is_on and config.method != "promptkd":
        raise UserError(
            f"teacher_lora.rank={config.teacher_lora.rank}: method {config.method} leaves its teacher as it is; set"
            " teacher_lora.rank=0, or method=promptkd"
        )
    if config.teacher_lora.is_on and config.prompt.regularization != "none":
        raise UserError(
            "teacher_lora starts as the plain teacher, so that L_reg has no place beside it (Table 9); set"
            " prompt.regularization=none"
        )
    if config.method == "promptkd" and config.prompt.student_fraction < 1 and config.data.responses is not None:
        raise UserError(
            f"prompt.student_fraction={config.prompt.student_fraction} mixes the student's responses with those of"
            " data.train, but data.responses takes the place of both; set it to 1"
        )


def check_minillm(config: "Config") -> None:
    """Refuse what MiniLLM cannot train with.

    Raises:
        UserError: no word about the corpus, rollouts that do not divide into windows, or truncated sampling.
    """
    if config.method != "minillm":
        return
    settings, generation = config.minillm, config.generation
    if settings.corpus is None:
        raise UserError(
            "method minillm needs minillm.corpus, plain text such as the student was pre-trained on; give a file, a"
            " folder of .txt files, or none to train without"
        )
    if settings.rollouts % config.schedule.global_batch:
        raise UserError(
            f"minillm.rollouts={settings.rollouts} is no multiple of schedule.global_batch="
            f"{config.schedule.global_batch}; change one of them"
        )
    if (generation.temperature, generation.top_p, generation.top_k) != (1, 1, 0):
        raise UserError(
            "method minillm weighs tokens by the models' own probabilities; set generation.temperature=1,"
            " generation.top_p=1 and generation.top_k=0"
        )
