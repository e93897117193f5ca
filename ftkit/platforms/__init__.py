"""Where stages' work happens: a platform's store, processes and endpoints. Azure is imported here alone."""
