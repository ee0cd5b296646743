"""Names of directories."""

from pathlib import Path

from evaluation.short_names import short_names


def test_names_are_as_short_as_they_can_be() -> None:
    places = [Path("/x/opt/promptkd"), Path("/x/gpt2/promptkd"), Path("/x/gpt2/sft"), Path("/y/gpt2/promptkd")]
    assert short_names(places) == ["opt/promptkd", "x/gpt2/promptkd", "sft", "y/gpt2/promptkd"]
