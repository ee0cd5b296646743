"""Student and teacher as methods see them, and what both are made of."""
