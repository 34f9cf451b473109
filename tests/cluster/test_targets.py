"""Where a study can be: checked before anything is written and before Ray starts."""

import pytest

from kdtvit_ray.cluster.targets import check_target
from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import StudyFolder


def test_a_folder_of_something_else_is_refused_and_a_first_start_that_was_killed_is_not(tmp_path):
    folder = StudyFolder(str(tmp_path / "study"))
    folder.make("the study's folder")
    check_target(folder)
    (tmp_path / "study" / ".snapshots").mkdir()
    folder.write_json(folder.lock, {})
    (tmp_path / "study" / f"{folder.lock}.1-a.partial").touch()
    (tmp_path / "study" / f"{folder.study}.1-b.partial").touch()
    (tmp_path / "study" / folder.log).touch()
    check_target(folder)
    (tmp_path / "study" / "images.npy").touch()
    with pytest.raises(UserError, match=r"study' holds other files; choose a new folder for the study"):
        check_target(folder)
    folder.write(folder.study, b"")
    check_target(folder)


@pytest.mark.parametrize("below", ["", "/store"])
def test_a_file_is_no_folder(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as refused:
        StudyFolder(f"{tmp_path}/file{below}").make("the store of stages")
    assert str(refused.value) == (
        f"Cannot make the store of stages '{tmp_path}/file{below}': '{tmp_path}/file' is a file; choose a folder"
    )
