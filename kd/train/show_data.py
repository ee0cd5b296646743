"""What the models read: the first rows of data.train in tokens, for `promptkd show-data`."""

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from kd.config.schema import Config
from kd.data.batch import TokenIds
from kd.data.encoding import Example, encode
from kd.data.instructions import read_rows_of
from kd.data.templates import template_of
from kd.errors import UserError, printable
from kd.models.vocabulary import load_tokenizer

_STYLES = {"prompt": "cyan", "response": "green", "end": "bold red"}


def show_data(config: Config, *, num_rows: int) -> None:
    """Print the first rows: prompt, response and end token in colour, with a bar between tokens.

    Raises:
        UserError: data.train is not set or cannot be read, or the tokenizer cannot; no row to show.
    """
    if num_rows < 1:
        raise UserError(f"--rows {num_rows}: expected a number of rows; give at least 1")
    if config.data.train is None:
        raise UserError("data.train is not set; show-data shows its rows")
    tokenizer = load_tokenizer(
        config.model.student,
        trust_remote_code=config.model.trust_remote_code,
        end_of_sequence=config.data.end_of_sequence,
    )
    console = Console(soft_wrap=True)
    notes: list[str] = []
    rows = read_rows_of(config.data.train, config.data, say=notes.append)
    template = template_of(config.data, tokenizer=tokenizer, say=notes.append)
    encoded = encode(rows, tokenizer=tokenizer, template=template, data=config.data, responses="optional")
    for line in (*notes, *encoded.report.lines()):
        console.print(printable(line), highlight=False, markup=False)
    for example in encoded.examples[:num_rows]:
        console.print(f"\n{printable(example.source)}: {_count(example)}", style="bold", highlight=False, markup=False)
        console.print(_colour(example, tokenizer=tokenizer))


def _count(example: Example) -> str:
    response = "no response" if example.response_ids is None else f"{len(example.response_ids)} of the response"
    return f"{len(example.prompt_ids)} tokens of the prompt, {response}"


def _colour(example: Example, *, tokenizer: PreTrainedTokenizerBase) -> Text:
    parts: list[tuple[str, TokenIds]] = [("prompt", example.prompt_ids)]
    if example.response_ids is not None:
        has_end = len(example.response_ids) > 0 and example.response_ids[-1] == tokenizer.eos_token_id
        size = len(example.response_ids) - has_end
        parts += [("response", example.response_ids[:size]), ("end", example.response_ids[size:])]
    text = Text()
    for name, ids in parts:
        text.append(f"\n{name}: " if text else f"{name}: ", style=f"{_STYLES[name]} reverse")
        for token in ids.tolist():
            # A line break is shown as well as made; other controls must not act on the terminal.
            shown = printable(str(tokenizer.decode([token])), keep="\n\t")
            text.append(shown.replace("\n", "⏎\n"), style=_STYLES[name])
            text.append("│", style="dim")
    return text
