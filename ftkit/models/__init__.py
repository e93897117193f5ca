"""The models: loading, adapters, loss head, and a folder for each family."""
