"""Imported by every package here that needs Detectron2, before anything else of it.

Where Detectron2 is missing, the import ends with one sentence that says what to install.
"""

try:
    import detectron2  # noqa: F401
except ImportError as error:
    raise ImportError(
        "this part of bn_detect needs Detectron2, which is not installed: run `make setup` in a "
        "clone of bn_detect, or follow https://detectron2.readthedocs.io/tutorials/install.html",
        name="detectron2",
    ) from error
