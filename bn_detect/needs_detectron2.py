"""Imported by every package here that needs Detectron2, before anything else of it.

Where Detectron2 cannot be imported, this ends with one sentence that says why and what to install.
"""

try:
    import detectron2.modeling  # noqa: F401 - it imports what Detectron2 itself needs
except ImportError as error:
    raise ImportError(
        f"this part of bn_detect needs Detectron2, which cannot be imported ({error}): run `make "
        "setup` in a clone of bn_detect, or follow "
        "https://detectron2.readthedocs.io/tutorials/install.html",
        name="detectron2",
    ) from error
