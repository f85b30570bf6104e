"""Checks of a registered dataset before time is spent on it."""
