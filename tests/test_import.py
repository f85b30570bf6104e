"""Importing the package is light and reads no files."""

import json

from .helpers.fresh_process import python

HEAVY = ("matplotlib", "sklearn", "pandas", "scipy", "skimage", "tensorboard")

# Prints the heavy modules that were loaded, and each file or folder that code of the package opened
# itself: an import statement reads files, too, but through importlib.
SCRIPT = """
import json, sys
opened = []
def see(event, args):
    if event not in ("open", "os.listdir", "os.scandir", "glob.glob"):
        return
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith("<frozen importlib"):
            return
        if "/bn_detect/" in name:
            if not str(args[0]).endswith(".py"):  # torch reads the source of custom operations
                opened.append([event, str(args[0])])
            return
        frame = frame.f_back
sys.addaudithook(see)
import bn_detect
MORE
loaded = [name for name in HEAVY if name in sys.modules]
print(json.dumps({"loaded": loaded, "opened": opened}))
"""


def imported(more: str = "") -> dict:
    script = SCRIPT.replace("MORE", more).replace("HEAVY", repr(HEAVY))
    return json.loads(python("-c", script).stdout)


def test_is_light_and_reads_no_files():
    assert imported() == {"loaded": [], "opened": []}
    assert imported("import bn_detect.probes") == {"loaded": [], "opened": []}


def test_the_watch_sees_what_the_package_opens(tmp_path):
    """Or the test above would find nothing in any case."""
    more = (
        "from pathlib import Path\n"
        "from bn_detect.runtime.files import write_json\n"
        f"write_json(Path({str(tmp_path)!r}, 'a.json'), [])"
    )
    assert any(str(tmp_path) in path for _, path in imported(more)["opened"])
