"""How far a student is from its teacher on fixed sequences, per response token.

python -m evaluation.divergence --teacher DIR --student DIR [--soft-prompt FILE] --data FILE --rows 64

The sequences are the rows' references, or with --responses a file of prompts and responses (such as the
generations of evaluate.py). Nothing is sampled, so two students can be compared on the same positions.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from kd.config import DataConfig
from kd.data.batch import SequenceBatch, TokenSequence, cut_micro_batches
from kd.data.encoding import encode, read_responses
from kd.data.instructions import read_instructions
from kd.data.templates import load_template
from kd.engines.causal_lm import CausalLM, load_causal_lm, read_model_config
from kd.engines.soft_prompt import SoftPrompt, load_soft_prompt
from kd.engines.vocabulary import check_same_entries, load_tokenizer, vocabulary_size
from kd.errors import EXIT_CODE, UserError
from kd.losses.divergences import forward_kl, reverse_kl
from kd.losses.likelihood import LikelihoodTerm
from kd.losses.linear_divergence import chunk_rows, linear_divergence
from kd.losses.terms import DivergenceTerm, Projection, Term


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Means over all response tokens [nats]."""

    reverse_kl: float
    """KL(q‖p), what the student's training minimises (Eq. 4)."""
    forward_kl: float
    """KL(p‖q)."""
    student_cross_entropy: float
    """-log q of the sequences themselves."""
    num_sequences: int
    num_tokens: int


@torch.no_grad()
def measure_distance(
    teacher: CausalLM,
    student: CausalLM,
    sequences: Sequence[TokenSequence],
    *,
    vocabulary: int,
    pad_id: int,
    micro_batch: int,
    soft_prompt: SoftPrompt | None = None,
) -> Distance:
    """Mean divergences between q and p (with P in front where one is given) over the response tokens."""
    sums = torch.zeros(3, dtype=torch.float64)
    num_tokens = 0
    for rows in cut_micro_batches(sequences, micro_batch=micro_batch):
        batch = SequenceBatch.collate(rows, pad_id=pad_id, device=torch.device("cpu"))
        target = _projection(teacher, batch, soft_prompt)
        terms: list[Term] = [
            DivergenceTerm(divergence=reverse_kl, target=target),
            DivergenceTerm(divergence=forward_kl, target=target),
            LikelihoodTerm(labels=batch.labels),
        ]
        chunk = chunk_rows(vocabulary)
        trained = _projection(student, batch, None)
        sums += linear_divergence(trained, terms, vocabulary_size=vocabulary, scale=1.0, chunk_size=chunk).term_sums
        num_tokens += batch.num_response_tokens
    reverse, forward, cross_entropy = (sums / num_tokens).tolist()
    return Distance(
        reverse_kl=reverse,
        forward_kl=forward,
        student_cross_entropy=cross_entropy,
        num_sequences=len(sequences),
        num_tokens=num_tokens,
    )


def response_states(view: CausalLM, batch: SequenceBatch, soft_prompt: SoftPrompt | None) -> Float[Tensor, "N H"]:
    """Hidden states that predict the response tokens, with P in front of the request where one is given."""
    if soft_prompt is None:
        states = view.hidden_states(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        positions = batch.response_positions
    else:
        embeds, mask = soft_prompt(view.embed(batch.input_ids), batch.attention_mask)
        states = view.hidden_states(inputs_embeds=embeds, attention_mask=mask)
        positions = batch.shifted_positions(soft_prompt.num_tokens)
    return states.flatten(0, 1)[positions]


def _projection(view: CausalLM, batch: SequenceBatch, soft_prompt: SoftPrompt | None) -> Projection:
    hidden = response_states(view, batch, soft_prompt)
    return Projection(hidden=hidden, weight=view.head_weight, bias=view.head_bias)


def _load(name: str, *, trust_remote_code: bool) -> CausalLM:
    model = load_causal_lm(
        name,
        config=read_model_config(name, trust_remote_code=trust_remote_code),
        dtype="fp32",
        deepspeed_config={},
        keep_dropout=True,
        trust_remote_code=trust_remote_code,
    )
    model.eval()
    return CausalLM.of(model)


def run(arguments: argparse.Namespace) -> Distance:
    """Load both models in fp32 and measure.

    Raises:
        UserError: what the arguments name cannot be used together.
    """
    trust = arguments.trust_remote_code
    tokenizer = load_tokenizer(arguments.student, trust_remote_code=trust)
    check_same_entries(tokenizer, load_tokenizer(arguments.teacher, trust_remote_code=trust))
    limits = DataConfig(
        template=arguments.template,
        max_prompt_tokens=arguments.max_prompt_tokens,
        max_sequence_tokens=arguments.max_sequence_tokens,
    )
    if arguments.responses is not None:
        encoded = read_responses(arguments.responses, tokenizer=tokenizer, data=limits)
    else:
        template = load_template(limits.template, tokenizer=tokenizer)
        rows = read_instructions(arguments.data)
        encoded = encode(rows, tokenizer=tokenizer, template=template, data=limits, responses="required")
    for line in encoded.report.lines():
        print(line, file=sys.stderr)
    return measure_distance(
        _load(arguments.teacher, trust_remote_code=trust),
        _load(arguments.student, trust_remote_code=trust),
        [example.with_response() for example in encoded.examples[: arguments.rows]],
        vocabulary=vocabulary_size(tokenizer),
        pad_id=int(tokenizer.eos_token_id),
        micro_batch=arguments.micro_batch,
        soft_prompt=None if arguments.soft_prompt is None else load_soft_prompt(arguments.soft_prompt)[0],
    )


def main() -> int:
    """Do what the command line says, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.divergence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--teacher", required=True, metavar="DIR", help="p: from_pretrained directory or hub name")
    parser.add_argument("--student", required=True, metavar="DIR", help="q: from_pretrained directory or hub name")
    parser.add_argument("--soft-prompt", metavar="FILE", help="put this soft prompt in front of the teacher's input")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", metavar="FILE", help="rows whose references are the sequences")
    source.add_argument("--responses", metavar="FILE", help="JSON lines prompt, response")
    parser.add_argument("--rows", type=int, default=64, help="the first so many rows [%(default)s]")
    parser.add_argument("--template", default="alpaca", help="as data.template [%(default)s]")
    parser.add_argument("--max-prompt-tokens", type=int, default=256, help="[%(default)s]")
    parser.add_argument("--max-sequence-tokens", type=int, default=512, help="[%(default)s]")
    parser.add_argument("--micro-batch", type=int, default=8, help="sequences in one forward pass [%(default)s]")
    parser.add_argument("--trust-remote-code", action="store_true", help="allow code that comes with a checkpoint")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the numbers as JSON")
    arguments = parser.parse_args()
    try:
        distance = run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CODE
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(asdict(distance), indent=2) + "\n", encoding="utf-8")
    print(
        f"KL(q||p) {distance.reverse_kl:.4f}   KL(p||q) {distance.forward_kl:.4f}   student's cross entropy"
        f" {distance.student_cross_entropy:.4f} nats per token"
        f" ({distance.num_sequences} sequences, {distance.num_tokens} tokens)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
