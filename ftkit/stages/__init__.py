"""The stages, one module each; ``ftkit.pipeline.stage`` lists what each needs and makes."""
