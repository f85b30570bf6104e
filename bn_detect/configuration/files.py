"""Find the configs and studies that come with the package: `find("studies/demo.yaml")`."""

import difflib
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def config_folder() -> Path:
    """Return the folder `configs`: inside the package where it was installed from a wheel, beside
    it in a clone."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def find(name: str | Path) -> Path:
    """Return the file that a user means by `name`.

    Args:
        name: a path, which is taken as it stands where such a file exists; else the name of one of
            the package's own files, such as "studies/demo.yaml" or "configs/studies/demo.yaml".

    Raises:
        ValueError: there is no such file; the message names the nearest one that the package has.
    """
    path = Path(name)
    if path.is_file():
        return path
    folder = config_folder()
    parts = path.parts[1:] if path.parts[:1] == (folder.name,) else path.parts
    own = folder.joinpath(*parts)
    if parts and ".." not in parts and own.is_file():
        return own
    known = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.yaml"))
    near = difflib.get_close_matches("/".join(parts), known, n=1)
    advice = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"there is no file {name}, and none of that name in {folder}{advice}")
