"""Which families pass the numeric probe: all causal language models of transformers, tiny and with random weights.

Writes families.json and the table of docs/families.md. Each family has a process of its own, with a time limit.
"""

import multiprocessing
import os
import tempfile
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    PreTrainedModel,
    logging,
)

from evaluation.bench.results import make_out
from evaluation.command import Command
from evaluation.results import write_json
from kd.config.fields import Count, Section, option
from kd.distributed import World
from kd.errors import UserError
from kd.files import write_atomically
from kd.models.causal_lm import CausalLM
from kd.rollout.probe import check_numbers

VOCABULARY = 320
LAYERS = 3
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "embedding_size", "dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff", "decoder_ffn_dim", "ffn_hidden_size"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts"), 2),
    # Hybrid families with layers of both kinds, and state-space sizes that fit each other.
    **dict.fromkeys(("attn_layer_period", "full_attention_interval", "layer_group_size"), 2),
    **dict.fromkeys(("expand", "mamba_expand", "attn_layer_offset"), 1),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 8),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "mamba_ngroups", "n_group", "topk_group"), 1),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 16),
    "rotary_dim": 4,
    "mamba_d_ssm": 32,
    "attn_layer_indices": [1],
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "vocab_size": VOCABULARY,
}
"""Settings of a tiny model, of which each family has some."""

WEIGHT_FACTOR = 5
"""What the weights of matrices are multiplied by."""

MOST_PARAMETERS = 20_000_000
"""A family with other names for its sizes would fill the machine's memory."""

CHECKS = {
    "trained": {"decodes": False, "packs": False},
    "rolled out": {"decodes": True, "packs": False},
    "packed": {"decodes": False, "packs": True},
}


@dataclass(frozen=True, kw_only=True)
class FamiliesConfig(Section):
    families: tuple[str, ...] = option((), help="names as in a config.json; empty for all")
    seconds: Count = option(60, help="time limit of each family")
    out: Path | None = option(None, help="new directory for the results; null for a new one in runs/")


FAMILIES = Command(config=FamiliesConfig, program="python -m evaluation.bench families", description=__doc__)


def run_families(config: FamiliesConfig) -> None:
    """Probe the families and write families.json and families.md.

    Raises:
        UserError: a name that transformers does not know, or --out cannot be made.
    """
    known = sorted(name for name, kind in CONFIG_MAPPING.items() if kind in MODEL_FOR_CAUSAL_LM_MAPPING)
    if unknown := sorted(set(config.families) - set(known)):
        raise UserError(f"families: {unknown[0]} is no causal language model of transformers")
    out = make_out(config.out, command="families")
    logging.set_verbosity_error()
    results: dict[str, dict[str, str]] = {}
    for family in track(config.families or known, description="families"):
        results[family] = _in_a_process(family, seconds=config.seconds)
        write_json(out / "families.json", results)
    write_atomically(out / "families.md", table(results))
    print(f"{out / 'families.md'}: {len(results)} families")


def table(results: dict[str, dict[str, str]]) -> str:
    """A row for each family: yes, or why not; families that could not be made come in a line of their own."""
    lines = [f"| family | {' | '.join(CHECKS)} |", "|---|" + "---|" * len(CHECKS)]
    for family, found in results.items():
        if "not made" not in found:
            # What a family is refused for in training, it is refused for in all.
            verdicts = [found[check] if found["trained"] == "yes" or check == "trained" else "" for check in CHECKS]
            lines.append(f"| `{family}` | {' | '.join(verdict.partition(';')[0] for verdict in verdicts)} |")
    others = [f"`{family}`" for family, found in results.items() if "not made" in found]
    return "\n".join([*lines, "", f"Not made in a tiny size: {', '.join(others) or 'none'}.", ""])


def _in_a_process(family: str, *, seconds: int) -> dict[str, str]:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryFile("w+") as errors:
        process = context.Process(target=_probe, args=(family, sender, errors.fileno()))
        process.start()
        sender.close()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
            return {"not made": f"not tried: more than {seconds} s"}
        if process.exitcode == 0:
            return dict(receiver.recv())
        errors.seek(0)
        last = (errors.read().strip().splitlines() or ["killed"])[-1]
    return {"not made": f"not tried: {last[:120]}"}


def _probe(family: str, sender: Connection, errors: int) -> None:
    # Tracebacks too.
    os.dup2(errors, 2)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    view = CausalLM.of(tiny_model(family))
    sender.send({name: _verdict(view, **options) for name, options in CHECKS.items()})


def tiny_model(family: str) -> PreTrainedModel:
    """A model of the family with random weights, its default settings except for sizes."""
    kind = CONFIG_MAPPING[family]
    own = kind().to_dict()
    torch.manual_seed(0)
    settings = {name: value for name, value in SIZES.items() if name in own}
    if "qk_rope_head_dim" in own:
        # Latent attention derives the size of a head, and has as many heads of keys as of queries.
        settings.pop("head_dim", None)
        settings["num_key_value_heads"] = SIZES["num_attention_heads"]
    for name in {"layer_types", "layers_block_type"} & set(own):
        # As many of its kinds of layers as fit.
        settings[name] = (list(dict.fromkeys(own[name] or ())) * LAYERS)[:LAYERS] or None
    config = kind(**settings)
    with torch.device("meta"):
        num_parameters = AutoModelForCausalLM.from_config(config).num_parameters()
    if num_parameters > MOST_PARAMETERS:
        raise ValueError(f"{num_parameters:,} parameters with these settings")
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).float().eval()
    # Weights of the usual size would hide what a cap of the logits, or a state, does.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(WEIGHT_FACTOR)
    return model


@torch.no_grad()
def _verdict(view: CausalLM, *, decodes: bool, packs: bool) -> str:
    world = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    try:
        head = view.head(vocabulary_size=VOCABULARY)
        check_numbers(view, head=head, name="", decodes=decodes, packs=packs, world=world)
    except UserError as error:
        return str(error).removeprefix("model : ")
    return "yes"
