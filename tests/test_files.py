"""Nothing is ever half written, overwritten or lost."""

import pytest

from nufm_hub.files import new_file, new_folder


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_file_appears_when_complete(tmp_path):
    with new_file(tmp_path / "sub" / "a.txt") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "sub" / "a.txt").exists()
    assert (tmp_path / "sub" / "a.txt").read_text() == "new"
    assert names(tmp_path / "sub") == ["a.txt"]


def test_failure_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), new_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    with pytest.raises(RuntimeError), new_folder(tmp_path / "b") as temporary:
        (temporary / "x").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == []


def test_existing_is_refused_and_untouched(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("old")
    (tmp_path / "f").write_text("old")
    with pytest.raises(FileExistsError, match="a exists"), new_folder(tmp_path / "a"):
        pass
    with pytest.raises(FileExistsError, match="f exists"), new_file(tmp_path / "f"):
        pass
    assert (tmp_path / "a" / "old").read_text() == (tmp_path / "f").read_text() == "old"


def test_overwriting_keeps_the_old_until_the_new_is_complete(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("old")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "a", overwrite=True) as temporary:
        (temporary / "new").write_text("half")
        raise RuntimeError
    assert names(tmp_path / "a") == ["old"]
    with new_folder(tmp_path / "a", overwrite=True) as temporary:
        (temporary / "new").write_text("new")
    assert names(tmp_path / "a") == ["new"]
    assert names(tmp_path) == ["a"]
