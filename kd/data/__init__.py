"""From files of instructions to the tensors of one micro-batch, in the order of a rank's steps."""
