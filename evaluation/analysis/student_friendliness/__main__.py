"""What the prompt changes in the teacher: distance to the student, quality, and examples (Tables 2 and 4 of the paper).

deepspeed --num_gpus 2 --module evaluation.analysis.student_friendliness --run runs/NAME --out DIR

A run of PromptKD names everything: its teacher, the student it began with, final/ with the soft prompt, and its
training (seen) and validation (unseen) rows. Each can be given instead. Rows need an output.

Writes student_friendliness.md, a page with table and examples, and student_friendliness.json, `"version": 1`:

    teacher, soft_prompt, initial, final, num_ranks, confidence
    settings    the fields that decide the numbers
    sets        {seen, unseen}, each with data, num_rows, num_tokens, dropped_rows, and the three columns
                without_prompt, with_prompt and difference (with minus without, paired by row). A column has
                initial and final, each with forward_kl, KL(p‖q), and reverse_kl, KL(q‖p) [nats per token of the
                rows' outputs], and rougeL (×100) and response_tokens of the teacher's own responses; each as
                value, low, high
    examples    the first unseen rows: prompt, reference, and the response of each model to the first seed

Divergences are means over tokens, end token included; intervals come from resampled rows.
"""

import sys
from collections.abc import Sequence

from evaluation.analysis.student_friendliness.measure import FriendlinessConfig, measure
from evaluation.command import Command
from evaluation.settings import run_values

COMMAND = Command(
    config=FriendlinessConfig,
    program="python -m evaluation.analysis.student_friendliness",
    description=__doc__,
    flags={"model.trained_prompt": "--soft-prompt"},
    run_values=run_values,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure as the command line says, and return the exit code."""
    return COMMAND.run_on_ranks(lambda config, world: measure(config, world=world), argv)


if __name__ == "__main__":
    sys.exit(main())
