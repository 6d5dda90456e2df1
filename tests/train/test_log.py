from __future__ import annotations

import json
import logging

from ponder_zoo.train.log import RunLog, read_metrics


def test_each_entry_is_one_json_line(tmp_path):
    file = tmp_path / "metrics.jsonl"
    with RunLog(file, total=3, bar=False) as log:
        log.write(1, {"loss": 0.5, "name": "x"})
        log.write(2, {"loss": float("nan")})
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["loss"] == 0.5 and rows[0]["name"] == "x" and rows[1]["loss"] is None


def test_resuming_drops_later_lines_and_a_line_cut_short(tmp_path):
    file = tmp_path / "metrics.jsonl"
    with RunLog(file, total=9, bar=False) as log:
        for step in range(1, 7):
            log.write(step, {"loss": step})
    with file.open("a") as stream:
        stream.write('{"step": 7, "lo')
    assert [row["step"] for row in read_metrics(file)] == [1, 2, 3, 4, 5, 6]
    with RunLog(file, total=9, start=4, bar=False) as log:
        log.write(5, {"loss": -5})
    assert [row["loss"] for row in read_metrics(file)] == [1, 2, 3, 4, -5]
    with RunLog(file, total=9, bar=False):
        pass
    assert read_metrics(file) == [], "a run from step 0 starts a new file"


def test_only_the_first_process_writes_but_all_track(tmp_path):
    seen = []
    with RunLog(
        tmp_path / "m.jsonl", total=1, main=False, track=lambda values, step: seen.append((step, values))
    ) as log:
        log.write(1, {"loss": 1.0})
        log.advance(1)
    assert not (tmp_path / "m.jsonl").exists() and seen == [(1, {"loss": 1.0})]


def test_without_a_terminal_there_are_plain_lines(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "ponder_zoo"), RunLog(tmp_path / "m.jsonl", total=10, bar=False) as log:
        log.write(5, {"loss": 0.25, "lr": 0.1, "other": 1.0}, show=("loss", "lr"))
    assert "step 5/10  loss 0.25  lr 0.1" in caplog.text and "other" not in caplog.text


def test_a_bar_shows_the_step_where_the_terminal_can(tmp_path, capsys):
    with RunLog(tmp_path / "m.jsonl", total=10, start=3, bar=True) as log:
        log.advance(4)
        log.write(4, {"loss": 0.25}, show=("loss",))
    assert "4/10" in capsys.readouterr().err
