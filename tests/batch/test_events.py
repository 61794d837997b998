import json
from datetime import datetime

from compressor.batch.events import Event, JsonLog


def told(*events):
    lines = []
    log = JsonLog(lines.append)
    for event in events:
        log.tell(event)
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in lines)
    return [json.loads(line) for line in lines]


def test_an_event_is_one_object_on_one_line():
    (line,) = told(Event("step", job="a", stage="measure", done=1, total=4))
    assert list(line) == ["time", "level", "job", "stage", "progress", "message"]
    assert datetime.fromisoformat(line["time"]).utcoffset().total_seconds() == 0
    assert (line["level"], line["job"], line["stage"], line["progress"]) == (
        "info",
        "a",
        "measure",
        0.25,
    )


def test_a_message_of_several_lines_stays_on_one():
    (line,) = told(Event("ended", "it failed\nbadly", "error", job="a"))
    assert line["message"] == "it failed\nbadly"
    assert line["level"] == "error"


def test_steps_that_follow_soon_are_left_out_but_ends_and_new_stages_are_not():
    steps = [Event("step", job="a", stage="measure", done=n, total=100) for n in range(1, 101)]
    lines = told(*steps, Event("step", job="b", stage="measure", done=1, total=2))
    assert [(line["job"], line["progress"]) for line in lines] == [
        ("a", 0.01),
        ("a", 1.0),
        ("b", 0.5),
    ]


def test_secrets_are_not_logged(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    (line,) = told(Event("note", "with hf_abcdefgh"))
    assert line["message"] == "with ***"
