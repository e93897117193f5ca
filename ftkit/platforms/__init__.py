"""Where stages do their work. ``base`` says what a platform answers; ``local`` and ``azureml`` are the platforms."""
