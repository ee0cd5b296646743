"""DeepSpeed engines: one global batch, where ZeRO has the parameters, and what a step measures."""
