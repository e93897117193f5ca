"""Answers that a model writes to questions whose answer is known, and which of them become rows."""
