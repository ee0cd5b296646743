"""The study of a soft prompt for each family asks about the demo's own rows."""

import json
from collections import Counter
from pathlib import Path

from demo.group_study import CONTESTANTS, name_families, train
from demo.phrasings import PHRASINGS
from kd.config_file import read_config
from kd.data.groups import read_groups

ROOT = Path(__file__).parents[2]


def test_every_row_gets_the_family_whose_words_it_has(tmp_path: Path) -> None:
    source, target = ROOT / "demo" / "data" / "prompts.jsonl", tmp_path / "rows.jsonl"
    name_families(source, target)
    before, after = ([json.loads(line) for line in path.read_text().splitlines()] for path in (source, target))
    assert [{key: row[key] for key in row if key != "family"} for row in after] == before
    counts = Counter(row["family"] for row in after)
    assert counts.keys() == PHRASINGS.keys() and min(counts.values()) > 100
    for row in after:
        ways = PHRASINGS[row["family"]]
        forms = ways.about_input if row["input"] else ways.self_contained
        assert any(row["instruction"].startswith(form.split("{")[0]) for form in forms), row


def test_contestants_differ_in_their_soft_prompts_only(tmp_path: Path) -> None:
    configs = {}
    for contestant in CONTESTANTS:
        overrides = [word for word in train(contestant, 3) if "=" in word]
        configs[contestant] = read_config(ROOT / "demo" / "promptkd.yaml", overrides=overrides)
        assert configs[contestant].run.seed == 3
    assert {name: config.method for name, config in configs.items()} == {
        "no prompt": "gkd",
        "one prompt": "promptkd",
        "one for each family": "promptkd",
    }
    assert [config.data.group for config in configs.values()] == [None, None, "family"]
    assert read_groups(configs["one prompt"].data) is None
