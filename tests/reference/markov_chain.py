"""Language models whose next token depends on the last token only, so that exposure bias has a closed form."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

WORDS = ("a", "b", "c", "d", "e")
END = "<end>"
END_ID = len(WORDS)
_WIDTH = 8


def random_chain(*, seed: int, end: float) -> np.ndarray:
    """Probabilities [V, V] of the next token after each token; the end token has `end` on average."""
    generator = np.random.default_rng(seed)
    words = generator.dirichlet(np.full(len(WORDS), 0.7), size=len(WORDS) + 1)
    words = (words + 0.02) / (words + 0.02).sum(axis=1, keepdims=True)
    # Some words end a sequence sooner than others: those that are left are no fair sample of all.
    ends = end * generator.uniform(0.2, 1.8, size=(len(words), 1))
    return np.hstack([(1 - ends) * words, ends])


def save_markov_model(directory: Path, chain: np.ndarray) -> Path:
    """Save a GPT-2 with probabilities `chain`: its blocks add nothing, its head reads which token was the last."""
    config = GPT2Config(
        vocab_size=len(chain),
        n_embd=_WIDTH,
        n_layer=1,
        n_head=2,
        n_positions=64,
        tie_word_embeddings=False,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
    )
    model = GPT2LMHeadModel(config)
    block = model.transformer.h[0]
    with torch.no_grad():
        for layer in (block.attn.c_proj, block.mlp.c_proj):
            layer.weight.zero_()
            layer.bias.zero_()
        model.transformer.wpe.weight.zero_()
        model.transformer.wte.weight.copy_(torch.eye(len(chain), _WIDTH))
        # The final normalisation makes scale · (e_i - 1/H) of a unit vector; its bias takes the constant away.
        scale = 1 / np.sqrt((1 / _WIDTH) * (1 - 1 / _WIDTH) + config.layer_norm_epsilon)
        model.transformer.ln_f.bias.fill_(scale / _WIDTH)
        weights = torch.zeros(len(chain), _WIDTH)
        weights[:, : len(chain)] = torch.from_numpy(np.log(chain).T / scale)
        model.lm_head.weight.copy_(weights)
    model.save_pretrained(directory)
    plain = Tokenizer(models.WordLevel({word: index for index, word in enumerate((*WORDS, END))}, unk_token=END))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=END, bos_token=END).save_pretrained(directory)  # type: ignore[no-untyped-call]
    return directory


def accumulated_error(p: np.ndarray, q: np.ndarray, sampler: np.ndarray, *, num_steps: int) -> np.ndarray:
    """Σ over t ≤ l of E[KL(p‖q) at step t | not ended before t] for l = 1 … `num_steps`, y_<t from `sampler`.

    The first step follows each word equally often (Eq. 6 with q, Eq. 7 with p as the sampler).
    """
    per_state = (p * np.log(p / q)).sum(axis=1)
    alive = np.append(np.full(len(WORDS), 1 / len(WORDS)), 0.0)
    means = []
    for _ in range(num_steps):
        means.append(alive @ per_state / alive.sum())
        alive = alive @ sampler
        alive[END_ID] = 0.0
    return np.cumsum(means)


def excess_accumulated_error(p: np.ndarray, q: np.ndarray, *, num_steps: int) -> np.ndarray:
    """ExAccErr(l) in percent (Eq. 5)."""
    risk = accumulated_error(p, q, q, num_steps=num_steps)
    least = accumulated_error(p, q, p, num_steps=num_steps)
    return 100 * (risk - least) / least
