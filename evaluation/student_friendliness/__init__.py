"""What the prompt does to the teacher (Tables 2 and 4): the parts of `evaluation.student_friendliness`."""
