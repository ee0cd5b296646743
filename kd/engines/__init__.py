"""Teacher and student under DeepSpeed, side by side on the same ranks."""
