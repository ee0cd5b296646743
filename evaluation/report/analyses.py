"""Exposure bias, student-friendliness, a judge's scores and the costs of a step, where they were measured."""

import pandas as pd

from evaluation.analysis.exposure_bias.plot import make_figure
from evaluation.report.findings import Findings
from evaluation.report.page import ERROR, HIGH, LOW, Section, Table, picture

_DISTANCES = {
    "initial.forward_kl": "KL(p‖q), initial student",
    "final.forward_kl": "KL(p‖q), final student",
    "initial.reverse_kl": "KL(q‖p), initial student",
    "final.reverse_kl": "KL(q‖p), final student",
}
_COSTS = {
    "case.method": "method",
    "case.zero_stage": "ZeRO stage",
    "case.gather": "gather",
    "peak.allocated": "allocated [GB]",
    "peak.reserved": "reserved [GB]",
    "step_seconds": "s per step",
    "tokens_per_second": "tokens per s",
}


def exposure_section(findings: Findings) -> Section:
    """Figure 3 for each output of evaluation.analysis.exposure_bias; empty without one."""
    pictures = []
    for index, output in enumerate(findings.outputs.results["exposure_bias"], start=1):
        found = output.results
        source = f"{found['num_requests']} prompts of {found['data']}, teacher {found['teacher']}"
        pictures.append(picture(f"exposure-bias-{index}", make_figure(found), description=f"ExAccErr. {source}."))
    return Section(
        key="exposure-bias",
        title="Exposure bias",
        text=(
            "ExAccErr(l), in percent: by how much the student’s divergence from the teacher, added up over l steps of"
            " the student’s own samples, exceeds that over the teacher’s samples (arXiv 2402.12842, Eq. 5). Near 0,"
            " errors do not accumulate. Bands and bars are 95 % intervals over the prompts."
        ),
        pictures=pictures,
    )


def friendliness_section(findings: Findings) -> Section:
    """The teacher with and without its prompt; empty without an output of evaluation.analysis.student_friendliness."""
    outputs = findings.outputs.results["student_friendliness"]
    frame = pd.json_normalize(
        [
            {"output": output.name, "rows": name, "teacher": condition.replace("_", " "), **measured[condition]}
            for output in outputs
            for name, measured in output.results["sets"].items()
            for condition in ("without_prompt", "with_prompt", "difference")
        ]
    )
    names = _DISTANCES | {"rougeL": "ROUGE-L"}
    ends = {"value": "", "low": LOW, "high": HIGH}
    columns = {f"{key}.{end}": name + suffix for key, name in names.items() for end, suffix in ends.items()}
    table = Table(
        key="student-friendliness",
        title="The teacher with and without its prompt",
        frame=frame.rename(columns=columns).reindex(columns=["output", "rows", "teacher", *columns.values()]),
        digits=dict.fromkeys(_DISTANCES.values(), 3),
        note=(
            "Seen: training rows, unseen: validation rows. p: teacher, q: student. Divergences in nats per token of the"
            " rows’ responses, ROUGE-L ×100 of the teacher’s own responses, with 95 % intervals over the rows."
            " Difference: with minus without prompt, row by row."
        ),
    )
    return Section(
        key="student-friendliness",
        title="Effect of the prompt on the teacher",
        tables=[table] if outputs else [],
    )


def judge_section(findings: Findings) -> Section:
    """Feedback scores; empty without an output of evaluation.judge."""
    rows = [
        {
            "judge": output.results["judge"]["model"],
            "model": model,
            "benchmark": benchmark,
            "score": score["score"],
            f"score{ERROR}": score["standard_error"],
            "comparisons": score["num_judged"],
            "without scores": score["num_rejected"] + score["num_unanswered"],
        }
        for output in findings.outputs.results["judge"]
        for model, scores in output.results["scores"].items()
        for benchmark, score in scores.items()
    ]
    table = Table(
        key="judge",
        title="Feedback scores",
        frame=pd.DataFrame(rows),
        digits={"comparisons": 0, "without scores": 0},
        note=(
            "Σ scores of the model / Σ scores of the references × 100: mean over the sampling seeds ± its standard"
            " error. Comparisons without scores are not counted in it."
        ),
    )
    return Section(key="judge", title="Feedback of a judge", tables=[table] if rows else [])


def costs_section(findings: Findings) -> Section:
    """Costs of a step; empty without an output of evaluation.bench."""
    entries = []
    for results in (output.results for output in findings.outputs.results["bench"]):
        machine = results["machine"]
        device = (machine["gpus"] or [machine["cpu"]])[0]
        known = {"preset": results["preset_name"], "device": device, "ranks": machine["num_ranks"]}
        entries += [known | entry for entry in results["costs"]]
    frame = pd.json_normalize(entries).rename(columns=_COSTS)
    frame = frame[[name for name in ("preset", "device", "ranks", *_COSTS.values()) if name in frame]]
    for name in (name for name in frame if name.endswith("[GB]")):
        frame[name] = frame[name].astype(float) / 1e9
    table = Table(
        key="costs",
        title="Costs of a step",
        frame=frame,
        digits={"ranks": 0, "ZeRO stage": 0, "allocated [GB]": 2, "reserved [GB]": 2, "s per step": 3},
        note="Most memory that one rank allocated, and that its allocator reserved; on a CPU its resident memory.",
    )
    return Section(key="costs", title="Costs", tables=[table] if entries else [])
