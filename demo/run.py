"""Run the demo (`make demo`): a good teacher, few labelled rows, many prompts without a response.

Every step is a command of the toolkit, printed before it runs. A second run does not repeat finished steps.
"""

import os
import sys

from demo import report
from demo.plan import CONTROLS, MODELS, RUNS, control_steps, training_seconds
from demo.steps import ROOT, evaluate_all, make_student, run, train


def main() -> int:
    """Run all steps, and return 0 if the distilled student is clearly ahead, else 1."""
    os.chdir(ROOT)
    make_student(f"{RUNS}/student-start")
    run("Fine-tune the student on the 150 labelled rows", train("student_sft"))
    run(
        "Distil the teacher into it with PromptKD: two ranks, ZeRO-3, 4,000 prompts without a response",
        train("promptkd"),
    )
    for name, control in CONTROLS.items():
        steps = control_steps(name)
        run(
            f"Control: continue fine-tuning {control.meaning}",
            train(
                "student_sft",
                f"model.student={RUNS}/student/final",
                f"schedule.steps={steps}",
                f"validation.every={max(1, steps // 4)}",
                *control.overrides,
                f"run.dir={RUNS}/{name}",
            ),
        )
    evaluate_all({f"{RUNS}/evaluation/{name}": model for name, model in MODELS.items()})
    print(f"\nPromptKD trained for {training_seconds('promptkd'):.0f} s.")
    return report.main()


if __name__ == "__main__":
    sys.exit(main())
