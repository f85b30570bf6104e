"""Whole experiments: several training runs, tables and pictures."""
