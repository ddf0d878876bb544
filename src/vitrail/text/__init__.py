"""Texts as the numbers a text tower reads: tokenizers on NumPy, without torch."""
