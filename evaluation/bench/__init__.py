"""What a training step costs: its parts, its memory, the arithmetic floor beside it, and a peer's step."""
