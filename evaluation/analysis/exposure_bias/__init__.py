"""Exposure bias of students: excess accumulated error (Fig. 3 of the paper)."""
