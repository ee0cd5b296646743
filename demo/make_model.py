"""Write a randomly initialised Llama with the demo's tokenizer, from which fine-tuning starts."""

import argparse
import shutil
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM


def make_model(tokenizer_dir: Path, *, layers: int, hidden: int, heads: int, seed: int, out: Path) -> int:
    """Save a seeded model with tied embeddings and its tokenizer to `out`, and return its number of parameters."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        # The gated block has three matrices: 8/3 of the width is as large as the usual pair of four times the width.
        intermediate_size=hidden * 8 // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(out)
    # Copied, not saved: transformers 5 would write a class name that transformers 4 does not know.
    for path in tokenizer_dir.glob("tokenizer*.json"):
        shutil.copy(path, out)
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder that make_tokenizer.py wrote")
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--hidden", type=int, required=True, help="size of the hidden states")
    parser.add_argument("--heads", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    size = make_model(
        args.tokenizer, layers=args.layers, hidden=args.hidden, heads=args.heads, seed=args.seed, out=args.out
    )
    print(f"{args.out}: {size / 1e6:.2f}M parameters")


if __name__ == "__main__":
    main()
