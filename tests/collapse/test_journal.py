"""What is noted of finished steps is there after a kill, and a half-written note is not."""

import pytest

from compressor.collapse.journal import Journal


def test_steps_and_what_is_known_after_the_last_come_back(tmp_path):
    path = tmp_path / "journal.json"
    first = Journal(path)
    assert len(first) == 0
    assert first.state == {}
    first.note("enter", {"scales": [[0, 0.1]]})
    first.note("block 0", {"scales": [[0, 1 / 3]]})
    again = Journal(path)
    assert "enter" in again
    assert "block 0" in again
    assert "block 1" not in again
    assert again.state == {"scales": [[0, 1 / 3]]}  # floats to the last bit


def test_a_kill_while_it_is_written_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "journal.json"
    Journal(path).note("enter", {"a": 1})

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        Journal(path).note("block 0", {"a": 2})
    again = Journal(path)
    assert "block 0" not in again
    assert again.state == {"a": 1}


def test_without_a_file_nothing_is_kept(tmp_path):
    journal = Journal(None)
    journal.note("enter", {"a": 1})
    assert "enter" in journal
    assert not list(tmp_path.iterdir())
