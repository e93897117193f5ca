"""Where stages' work happens: the folder store, processes and endpoints of this machine. Azure is imported here alone."""
