"""The command line: its help and its tab completion."""
