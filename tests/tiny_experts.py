"""A family of a checkpoint's own code, whose experts are a list of modules: ranks use different ones."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny_models import save_tiny_model

_CODE = """\
import torch
from torch import nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP


class Experts(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, 4, bias=False)
        self.experts = nn.ModuleList(LlamaMLP(config) for _ in range(4))

    def forward(self, hidden):
        flat = hidden.flatten(0, -2)
        share, chosen = self.gate(flat).softmax(-1).max(-1)
        output = torch.zeros_like(flat)
        for number in chosen.unique().tolist():
            tokens = (chosen == number).nonzero().squeeze(-1)
            output = output.index_add(0, tokens, share[tokens, None] * self.experts[number](flat[tokens]))
        return output.view_as(hidden)


class ExpertsForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = Experts(config)
        self.post_init()
"""


def save_tiny_experts(directory: Path, *, seed: int, **sizes: Any) -> Path:
    """Save a random model of that family with the tiny tokenizer and its code."""
    save_tiny_model(directory, "llama", seed=seed, num_key_value_heads=2, **sizes)
    (directory / "experts.py").write_text(_CODE, encoding="utf-8")
    config = json.loads((directory / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "experts.ExpertsForCausalLM"}
    (directory / "config.json").write_text(json.dumps(config))
    torch.manual_seed(seed)
    loaded = AutoConfig.from_pretrained(directory, trust_remote_code=True)
    AutoModelForCausalLM.from_config(loaded, trust_remote_code=True).save_pretrained(directory)
    return directory
