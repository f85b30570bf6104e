"""The error of a dataset that cannot be used."""


class DatasetError(ValueError):
    """A dataset is missing, faulty or cannot be prepared; the message says which, where, and what
    to do about it."""
