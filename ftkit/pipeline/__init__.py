"""From a configuration to stages that run: what each needs, what is up to date, where it runs."""
