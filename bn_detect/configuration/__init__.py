"""Config keys, how a config is read, and what is checked before anything starts."""
