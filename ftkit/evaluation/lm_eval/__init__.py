"""Tasks of lm-evaluation-harness, put to the models by its own code in a process of its own."""
