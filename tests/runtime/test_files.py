"""Files that are whole or not there, and folders with one user."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bn_detect.runtime.errors import FolderInUse
from bn_detect.runtime.files import check_writable, write_atomically, write_json
from bn_detect.runtime.folder_lock import sole_user


def test_a_new_file_has_the_users_mode_and_an_old_one_keeps_its_own(tmp_path):
    path, other = tmp_path / "a.json", tmp_path / "other"
    other.touch()
    write_json(path, 1)
    assert path.stat().st_mode == other.stat().st_mode
    path.chmod(0o640)
    write_json(path, 2)
    assert path.read_text() == "2" and path.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == ["a.json", "other"]


def test_a_link_stays_and_its_file_is_written(tmp_path):
    (tmp_path / "folder").mkdir()
    link, file = tmp_path / "link.json", tmp_path / "folder" / "file.json"
    link.symlink_to("folder/file.json")
    for number in (1, 2):
        write_json(link, number)
        assert link.is_symlink() and file.read_text() == str(number)


def test_what_is_no_file_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_json(pipe, 3)
    reader.join(20)
    assert read == ["3"] and pipe.is_fifo()


def test_two_writers_leave_what_one_of_them_wrote(tmp_path):
    path, errors = tmp_path / "a", []

    def write(letter: bytes) -> None:
        try:
            for _ in range(100):
                write_atomically(path, lambda file: [file.write(letter) for _ in range(50)])
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            assert len(set(path.read_bytes())) == 1 and path.stat().st_size == 50
    assert not errors and os.listdir(tmp_path) == ["a"]


def test_a_place_that_cannot_be_written_is_named_before(tmp_path):
    check_writable(tmp_path / "new")
    (tmp_path / "link").symlink_to(tmp_path / "gone" / "file")
    for path in (tmp_path, tmp_path / "gone" / "new", tmp_path / "link"):
        with pytest.raises(OSError) as error:
            check_writable(path)
        assert str(os.path.realpath(path)) in str(error.value)
    assert os.listdir(tmp_path) == ["link"]


def test_a_second_user_of_a_folder_is_told_who_is_there(tmp_path):
    program = (
        "import sys\nfrom bn_detect.runtime.folder_lock import sole_user\n"
        "with sole_user(sys.argv[1], 'OUTPUT_DIR'):\n    print('in', flush=True)\n    input()\n"
    )
    folder = tmp_path / "made" / "on the way"
    first = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert first.stdout.readline() == "in\n"
        with pytest.raises(FolderInUse) as error, sole_user(folder, "OUTPUT_DIR"):
            pass
        assert f"OUTPUT_DIR {folder} is in use by process {first.pid} on " in str(error.value)
    finally:
        first.kill()
        first.communicate()
    (folder / ".x.pth.0123abcd.bn_detect-tmp").touch()  # as a killed process leaves it
    with sole_user(folder, "OUTPUT_DIR"):
        assert os.listdir(folder) == [".in_use"]
