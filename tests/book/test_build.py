"""book/_tools/build.py: when Sphinx has to read all the pages again."""

from __future__ import annotations

import os

import pytest


@pytest.mark.parametrize(
    ("kept_at", "changed_at", "old"), [(None, 20, False), (20, 10, False), (10, 20, True)]
)
def test_pages_are_read_again_after_a_change_of_the_extensions(tmp_path, kept_at, changed_at, old):
    # At the top it would be sorted by whether there is a build folder.
    from build import made_by_older_code

    doctrees, code = tmp_path / "doctrees", tmp_path / "code" / "deeper"
    doctrees.mkdir()
    code.mkdir(parents=True)
    for path, at in ((doctrees / "environment.pickle", kept_at), (code / "e.py", changed_at)):
        if at is not None:
            path.touch()
            os.utime(path, (at, at))
    assert made_by_older_code(doctrees, tmp_path / "code") is old
