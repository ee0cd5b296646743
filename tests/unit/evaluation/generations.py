"""Responses for tests that need no model."""

from pathlib import Path

from evaluation.generations import Response, generations_file, write_generations


def generation(row: int, *, rouge_l: float = 0.0, reference: str = "yes", response: str = "no") -> Response:
    """A scored response of four tokens that ended."""
    return Response(
        row=row,
        prompt=f"question {row}",
        response=response,
        references=(reference,),
        response_tokens=4,
        ended=True,
        scores={"rougeL": rouge_l, "exact_match": 100.0 * (response == reference)},
    )


def write_scores(out: Path, *, benchmark: str, by_seed: dict[int, list[float]]) -> None:
    """Files of an evaluation whose rows 0, 1, … have these ROUGE-L scores."""
    for seed, scores in by_seed.items():
        rows = [generation(row, rouge_l=value) for row, value in enumerate(scores)]
        write_generations(generations_file(out, benchmark=benchmark, seed=seed), rows)
