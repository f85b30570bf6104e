"""The commands: one module for each subcommand of `bn-detect`."""
