"""What the prompt changes in the teacher (Tables 2 and 4 of the paper)."""
