"""Processes, signals, checkpoints, and files that are whole or not there."""
