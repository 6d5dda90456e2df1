"""The paper's tables beside runs: which run belongs to which row, and what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ponder_zoo.report.tables import compare, print_table, table_text

CONFIGS = Path(__file__).resolve().parents[2] / "recipes/configs/indoor"


def write_run(folder: Path, expected: str, metrics: dict[str, float] | None) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"lr: 0.1\n{expected}\n")
    if metrics is not None:
        (folder / "eval.json").write_text(json.dumps({"metrics": metrics}))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    row = "expected: {table: 9, row: PonderV2, column: ScanNet, mIoU: 77.0, test_mIoU: 78.5}"
    write_run(tmp_path / "runs/b", row, {"mIoU": 0.7654, "mAcc": 0.8})
    write_run(tmp_path / "runs/c", row, None)
    write_run(tmp_path / "runs/d", "expected: {}", {"mIoU": 0.99})
    write_run(tmp_path / "runs/e", "", {"mIoU": 0.98})
    write_run(tmp_path / "runs/f", "{damaged", {"mIoU": 0.97})
    return tmp_path / "runs"


def test_a_run_stands_beside_the_row_that_it_was_made_for(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = compare("9", CONFIGS, runs)
    val, test = table["9", "PonderV2", "ScanNet"]
    assert (val.metric, val.paper, val.ours) == ("mIoU", 77.0, [("b", pytest.approx(76.54)), ("c", None)])
    assert (test.paper, test.ours) == (78.5, [("b", None), ("c", None)])
    assert "f/config.yaml" in caplog.text
    assert not any(
        cell.ours for place, cells in table.items() if place[1:] != ("PonderV2", "ScanNet") for cell in cells
    )


def test_the_table_is_printed_with_the_papers_numbers_whatever_has_run(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert print_table(["--table", "9"], CONFIGS, runs)
    text = capsys.readouterr().out
    assert "| ScanNet | PonderV2 | mIoU | 77.0 | 76.5, - | b, c |" in text
    assert "| S3DIS 6-fold | PonderV2 | mIoU | 79.9 | - |  |" in text
    assert "| Average | PPT | mAcc | 85.4 | - |  |" in table_text("10", CONFIGS, runs / "none")
    assert "| ScanNet200 | PonderV2 | AP50 | 30.5 | - |  |" in table_text("11", CONFIGS, runs)
    assert "| Limited reconstructions 5 % | PonderV2 | mIoU | 56.5 | - |  |" in table_text("12", CONFIGS, runs)


def test_a_table_that_is_not_there_is_an_error_and_other_arguments_are_not_taken(runs: Path) -> None:
    with pytest.raises(SystemExit, match="one of 9, 10, 11, 12; got '13'"):
        print_table(["--table=13"], CONFIGS, runs)
    assert not print_table(["run=runs/pretrain"], CONFIGS, runs) and not print_table([], CONFIGS, runs)


def test_every_row_of_the_papers_tables_is_there_once() -> None:
    places = [place for number in ("9", "10", "11", "12") for place in compare(number, CONFIGS, CONFIGS / "none")]
    rows = [path for path in CONFIGS.glob("table*.yaml")]
    assert len(places) == len(rows) == 11 + 15 + 6 + 24


def test_columns_are_in_natural_order_and_better_rows_later() -> None:
    places = list(compare("12", CONFIGS, CONFIGS / "none"))
    columns = list(dict.fromkeys(column for _, _, column in places))
    assert columns == [
        *(f"Limited annotations {count} points" for count in (20, 50, 100, 200)),
        *(f"Limited reconstructions {percent} %" for percent in (1, 5, 10, 20)),
    ]
    assert [row for _, row, _ in places[:3]] == ["Scratch", "PPT", "PonderV2"]


def test_a_sum_of_runs_belongs_to_the_configuration_of_its_name(runs: Path) -> None:
    folder = runs / "table10_s3dis_average_ponderv2"
    folder.mkdir()
    (folder / "eval.json").write_text(json.dumps({"metrics": {"mIoU": 0.5, "mAcc": 0.625, "allAcc": 0.75}}))
    cells = compare("10", CONFIGS, runs)["10", "PonderV2", "Average"]
    assert [cell.ours for cell in cells] == [[(folder.name, value)] for value in (50.0, 62.5, 75.0)]
