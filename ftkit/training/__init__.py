"""Training: ``train.train`` is the way in, and ``build.set_up`` makes what it trains."""
