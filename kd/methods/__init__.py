"""One training algorithm per file, all with the same engines, sampler and loss."""
