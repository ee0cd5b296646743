"""Feedback of a language model on the responses of evaluate.py, relative to the references (Table 6 of the paper).

export OPENAI_API_KEY=…
python -m evaluation.judge --judge gpt-4 --evaluation promptkd=runs/a/evaluation --benchmark dolly --out runs/judge \\
    --price-input 30 --price-output 60 --dry-run

Works with any server that has OpenAI's chat completions interface (--base-url). Every response of the judge is written
to the cache when it arrives: the same command resumes after an interruption, and pays for nothing twice. Writes
judgements/MODEL/BENCHMARK.jsonl, a line for each comparison, and judge.json, `"version": 1`, with

    judge       base_url, model, temperature, max_response_tokens, attempts
    orders      who was Assistant 1: model_first (the paper's), reference_first
    sources     {BENCHMARK: file of rows}
    scores      {MODEL: {BENCHMARK: …}}: score (Σ model scores / Σ reference scores × 100, mean over the seeds),
                standard_error (over seeds), pooled (value, low, high over rows), per_seed, by_order,
                mean_model_score, mean_reference_score, num_judged, num_rejected, num_unanswered
    usage       num_responses, input_tokens and output_tokens of all responses counted here, cost (null without prices),
                and num_asked: the responses that this call paid for

A response of the judge counts if its first line is two numbers from 1 to 10. Others are requested again, and counted
as rejected after --attempts. A comparison is unanswered if the server failed or refused it, such as a prompt that is
too long for the judge. Neither is in any score. The exit code is 1 if some are unanswered.
"""

import sys
from collections.abc import Sequence

from evaluation.command import Command
from evaluation.judge.config import JudgeConfig
from evaluation.judge.endpoint import check_openai
from evaluation.judge.judge import judge

INTERRUPTED = 130
COMMAND = Command(
    config=JudgeConfig,
    program="python -m evaluation.judge",
    description=__doc__,
    flags={
        "judge.model": "--judge",
        "price.input": "--price-input",
        "price.output": "--price-output",
        "evaluations": "--evaluation",
        "benchmarks": "--benchmark",
        "sources": "--data",
    },
)


def _run(config: JudgeConfig) -> int:
    check_openai()
    return 1 if judge(config) else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Judge as the command line says, and return the exit code."""
    try:
        return COMMAND.run(_run, argv)
    except KeyboardInterrupt:
        print("interrupted; the judge's responses so far are kept, the same command resumes", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
