"""The instruction sets of the paper's Table 1: where they come from, what is kept of them, how many rows that is."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from evaluation.benchmarks.formats import (
    Original,
    read_dolly,
    read_fastchat,
    read_natural_instructions,
    read_self_instruct,
)
from kd.data.instructions import Instruction


@dataclass(frozen=True, kw_only=True)
class RowFilter:
    """Which rows are kept. Lengths are in GPT-2 tokens for all models, without special tokens."""

    response_tokens: tuple[int, int | None] | None = None
    """Lowest and highest length of the first reference, both included; no highest where it is None."""
    max_prompt_tokens: int | None = None
    """Of the formatted prompt (template alpaca)."""

    def __str__(self) -> str:
        parts = []
        if self.response_tokens is not None:
            lowest, highest = self.response_tokens
            lengths = f"{lowest} or more" if highest is None else f"{lowest} to {highest}"
            parts.append(f"first reference of {lengths} GPT-2 tokens")
        if self.max_prompt_tokens is not None:
            parts.append(f"prompt of at most {self.max_prompt_tokens} GPT-2 tokens")
        return ", ".join(parts) or "every row"


@dataclass(frozen=True, kw_only=True)
class BenchmarkSpec:
    """One published instruction set."""

    column: str
    """Its name in Table 1."""
    licence: str
    original: str
    """The authors' file or directory."""
    processed: str
    """Hub repository of MiniLLM, which PromptKD evaluates with, and the file in it; in the project's own format."""
    fields: str
    """What becomes instruction, input and output."""
    read: Callable[[Original], list[Instruction]]
    num_rows: tuple[int, ...]
    """Published numbers of rows; where there are two, the second is without prompts of more than 256 tokens."""
    companion: str = ""
    """What the second file holds, empty where there is none."""
    rows: RowFilter = RowFilter()

    @property
    def counts(self) -> str:
        return " or ".join(map(str, self.num_rows))


# Published files of both hold no longer prompt.
_LONG_RESPONSES = RowFilter(response_tokens=(11, None), max_prompt_tokens=256)

_DOLLY_VALIDATION = BenchmarkSpec(
    column="Dolly (validation)",
    licence="CC BY-SA 3.0",
    original="databricks/databricks-dolly-15k, without a split",
    processed="MiniLLM/dolly-processed, prompt/gpt2/valid.jsonl",
    fields="instruction, context, response",
    read=read_dolly,
    num_rows=(1000,),
)

SPECS = {
    "dolly_validation": _DOLLY_VALIDATION,
    "dolly_test": replace(_DOLLY_VALIDATION, column="Dolly", processed="MiniLLM/dolly, valid.jsonl", num_rows=(500,)),
    "self_inst": BenchmarkSpec(
        column="SelfInst",
        licence="Apache-2.0",
        original="github.com/yizhongw/self-instruct, human_eval/user_oriented_instructions.jsonl",
        processed="MiniLLM/self-inst, valid.jsonl",
        fields="instruction, instances: input, output",
        read=read_self_instruct,
        num_rows=(252, 242),
    ),
    "vicuna": BenchmarkSpec(
        column="Vicuna",
        licence="Apache-2.0",
        original="github.com/lm-sys/FastChat, question.jsonl of fastchat/llm_judge/data/vicuna_bench",
        processed="MiniLLM/Vicuna, valid.jsonl",
        fields="text or turns; output from the companion",
        companion="ChatGPT's responses, answer_gpt35.jsonl of FastChat's eval/table/answer",
        read=read_fastchat,
        num_rows=(80,),
    ),
    "s_ni": BenchmarkSpec(
        column="S-NI",
        licence="Apache-2.0",
        original="github.com/allenai/natural-instructions, the directory",
        processed="MiniLLM/sinst, 11_/valid.jsonl",
        fields="Definition, Instances: input, output (first 100)",
        companion="another list of tasks than splits/default/test_tasks.txt",
        read=read_natural_instructions,
        rows=_LONG_RESPONSES,
        num_rows=(1694,),
    ),
    "un_ni": BenchmarkSpec(
        column="UnNI",
        licence="MIT",
        original="github.com/orhonovich/unnatural-instructions, core_data.jsonl",
        processed="MiniLLM/uinst, 11_/valid.jsonl",
        fields="instruction, instances: input, output",
        read=read_self_instruct,
        rows=_LONG_RESPONSES,
        num_rows=(23916,),
    ),
}
