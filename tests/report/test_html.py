from __future__ import annotations

import base64
import gzip
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ponder_zoo.report.__main__ import main
from ponder_zoo.report.html import duration, write_report
from ponder_zoo.report.previews import preview_path
from ponder_zoo.report.run_files import MAX_CLOUD_POINTS, write_clouds, write_eval, write_run_info

NASTY = "</script><script>alert(1)</script><b>&\"'"
VOID = {"meta", "link", "img", "input", "br", "path", "circle"}


class Page(HTMLParser):
    """Collects what the tests ask for: references, text, scripts by id, and whether elements nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.references: list[str] = []
        self.scripts: dict[str, str] = {}
        self.text = ""
        self.tags: list[str] = []
        self.ids: list[str] = []
        self._open: list[str] = []
        self._script: str | None = None
        self.feed(path.read_text(encoding="utf-8"))
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.references += [str(given[key]) for key in ("src", "href", "data", "poster", "srcset") if given.get(key)]
        if "id" in given:
            self.ids.append(str(given["id"]))
        if tag == "img":
            assert "alt" in given
        if tag == "script":
            self._script = given.get("id") or "code"
            self.scripts[self._script] = ""
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self._open.pop() == tag
        self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[self._script] += data
        else:
            self.text += data


def strict_json(text: str) -> dict:
    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    rows = [{"step": s, "loss": 2.0 - 0.1 * s, "loss/rgb": 1.0 / (s + 1), "lr": 1e-3, "epoch": 0} for s in range(10)]
    rows[3]["loss"] = math.nan
    rows[4]["loss"] = math.inf
    rows.append({"step": 9, "val": {"psnr": 20.5}, "note": "text", "flag": True})
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + '\n{"step": 10, "lo')
    (folder / "config.yaml").write_text(f"encoder: sparseunet\ndata:\n  root: '{NASTY}'\n")
    for step in (0, 5, 10):
        path = preview_path(folder, step)
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 40, 3), 20 * step, np.uint8)).save(path)
    write_eval(
        folder,
        {"psnr": 21.5, "depth_median_error": 0.08, "broken": math.nan},
        baselines={"constant": {"psnr": 13.25, "depth_median_error": 0.64}},
        iou={"wall": 0.75, NASTY: 0.5, "sink": math.nan},
        ap50={"chair": 0.375, "wall": math.nan},
        step=10,
    )
    write_run_info(
        folder, task="pretrain", model="tiny", status="finished", wall_time=125.2, notes=[NASTY], command=NASTY
    )
    return folder


def test_the_page_is_complete_and_refers_to_nothing_outside(run_dir: Path) -> None:
    coord = np.random.default_rng(0).uniform(0, 3, (100, 3))
    write_clouds(run_dir, coord, color=np.full((100, 3), 90), feature_rgb=coord / 3)
    path = write_report(run_dir)
    page, source = Page(path), path.read_text(encoding="utf-8")
    assert path == run_dir / "report.html"
    assert not re.search(r"(?:https?:)?//[\w.-]+\.\w", source.replace(page.scripts["plotly"], "")), "a network address"
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    assert not re.search(r"@import|url\(", source)
    for anchor in (reference[1:] for reference in page.references if reference.startswith("#")):
        assert anchor in page.ids, f"a link to #{anchor}, which is not there"
    assert "Average precision of instances (AP50)" in page.text and "37.5 %" in page.text
    assert "Pre-training of tiny" in page.text and "2 min 05 s" in page.text
    assert "function" in gzip.decompress(base64.b64decode(page.scripts["plotly"])).decode()
    assert list(run_dir.glob(".report*")) == []


def test_text_of_the_run_cannot_become_code(run_dir: Path) -> None:
    page = Page(write_report(run_dir, title=NASTY, notes=[NASTY]))
    assert page.tags.count("script") == 3 and "b" in page.tags  # payload, plotly, code; <b> is the template's
    assert page.text.count(NASTY) >= 5  # title twice, note twice, command, config, class: as text
    assert "alert(1)" not in page.scripts["code"]


def test_numbers_that_are_not_finite_are_gaps_and_are_reported(run_dir: Path) -> None:
    page = Page(write_report(run_dir))
    charts = {chart["title"]: chart for chart in strict_json(page.scripts["payload"])["charts"]}
    loss = charts["Loss"]["series"][0]
    assert loss["y"][3] is None and loss["y"][4] is None and loss["y"][5] == 1.5 and loss["x"] == list(range(10))
    assert "loss was not finite at 2 of 10 logged steps (first: step 3)." in page.text
    assert "metrics.jsonl: 1 line(s) could not be read" in page.text
    assert charts["Loss terms"]["series"][0]["name"] == "rgb"
    assert charts["PSNR"]["series"][0] == {"name": "val", "x": [9], "y": [20.5]}
    assert "Epoch" not in charts


def test_figures_stand_beside_what_they_had_to_beat(run_dir: Path) -> None:
    text = " ".join(Page(write_report(run_dir)).text.split())
    assert "PSNR 21.5 dB +8.2 dB constant: 13.2 dB" in text
    assert "Median depth error 8.0 cm 8.0 × smaller constant: 64.0 cm" in text
    assert "wall75.0 %" in text and "sinkdoes not occur" in text  # cells of a table


def test_pictures_are_inside_in_the_order_of_their_steps(run_dir: Path) -> None:
    page = Page(write_report(run_dir))
    pictures = [reference for reference in page.references if reference.startswith("data:image")]
    assert len(pictures) == 3
    for step, picture in zip((0, 5, 10), pictures, strict=True):
        file = run_dir / "decoded"
        file.write_bytes(base64.b64decode(picture.partition(",")[2]))
        with Image.open(file) as image:
            assert image.size == (40, 20) and abs(image.convert("RGB").getpixel((9, 9))[0] - 20 * step) <= 3  # type: ignore[index]


def test_many_pictures_are_thinned_but_the_first_and_last_stay(tmp_path: Path) -> None:
    (tmp_path / "previews").mkdir()
    for step in range(60):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(preview_path(tmp_path, step))
    page = Page(write_report(tmp_path))
    assert len([reference for reference in page.references if reference.startswith("data:image")]) == 24
    assert "Step 0" in page.text and "Step 59" in page.text


def test_clouds_keep_their_place_and_colours(tmp_path: Path) -> None:
    coord = np.random.default_rng(0).uniform([-4, 2, 0], [5, 6, 3], (500, 3)).astype(np.float32)
    color = np.random.default_rng(1).integers(0, 256, (500, 3))
    write_clouds(tmp_path, coord, color=color, feature_rgb=color / 255)
    clouds = strict_json(Page(write_report(tmp_path)).scripts["payload"])["clouds"]
    steps = np.frombuffer(base64.b64decode(clouds["coord"]), "<u2").reshape(-1, 3)
    np.testing.assert_allclose(clouds["low"] + clouds["step"] * steps, coord, atol=1e-4)
    assert [item["label"] for item in clouds["colorings"]] == ["Input colours", "Learned features, PCA colours"]
    for item in clouds["colorings"]:
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(item["rgb"]), np.uint8).reshape(-1, 3), color)


def test_a_ceiling_is_cut_off_at_first_and_an_open_room_is_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    walls = rng.uniform([0, 0, 0], [4, 4, 2.5], (3000, 3))
    ceiling = np.concatenate([walls, np.c_[rng.uniform(0, 4, (1500, 2)), np.full(1500, 2.5)]])
    for name, coord, cut in (("open", walls, 2.5), ("closed", ceiling, 2.3)):
        write_clouds(tmp_path / name, coord)
        clouds = strict_json(Page(write_report(tmp_path / name)).scripts["payload"])["clouds"]
        assert clouds["cut"] == pytest.approx(cut, abs=0.01)


def test_large_clouds_are_thinned_and_wrong_ones_refused(tmp_path: Path) -> None:
    path = write_clouds(tmp_path, np.zeros((3 * MAX_CLOUD_POINTS, 3)))
    with np.load(path) as file:
        assert file["coord"].shape == file["color"].shape == (MAX_CLOUD_POINTS, 3)
    with pytest.raises(ValueError, match=r"feature_rgb \(4, 3\)"):
        write_clouds(tmp_path, np.zeros((5, 3)), feature_rgb=np.zeros((4, 3)))
    with pytest.raises(ValueError, match="_rgb"):
        write_clouds(tmp_path, np.zeros((5, 3)), features=np.zeros((5, 3)))


def test_an_unfinished_or_damaged_run_still_gives_a_page(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path))
    assert strict_json(page.scripts["payload"]) == {"charts": [], "clouds": {}} and "plotly" not in page.scripts
    (tmp_path / "eval.json").write_text("{half")
    (tmp_path / "run.json").write_text("[1]")
    (tmp_path / "clouds.npz").write_bytes(b"PK\x03\x04 not an archive")
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": NaN}\n')
    (tmp_path / "previews").mkdir()
    (tmp_path / "previews" / "step_1.png").write_bytes(b"not a picture")
    text = Page(write_report(tmp_path)).text
    assert "step_1.png could not be read" in text
    assert all(
        name in text for name in ("eval.json is not valid JSON", "run.json holds a list", "clouds.npz could not")
    )


def test_a_step_logged_again_after_a_resume_counts_once(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": value} for step, value in [(0, 3.0), (1, 2.0), (2, 9.0), (1, 2.0), (2, 1.0)]]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    chart = strict_json(Page(write_report(tmp_path)).scripts["payload"])["charts"][0]["series"][0]
    assert (chart["x"], chart["y"]) == ([0, 1, 2], [3.0, 2.0, 1.0])


def test_a_score_and_its_baseline_share_a_chart_and_what_follows_from_them_has_none(tmp_path: Path) -> None:
    names = (
        "val_psnr",
        "val_psnr_constant",
        "val_psnr_gain",
        "val_depth_median",
        "val_depth_ratio",
        "val_views",
        "rgb",
    )
    rows = [{"step": step, "seconds": 9.0 * step, "skipped": 0} | dict.fromkeys(names, 2.0) for step in (0, 10)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    page = Page(write_report(tmp_path))
    charts = strict_json(page.scripts["payload"])["charts"]
    assert {chart["title"]: [series["name"] for series in chart["series"]] for chart in charts} == {
        "Loss terms": ["rgb"],
        "PSNR": ["val", "val constant"],
        "Median depth error": ["val"],
    }
    assert "1 min 30 s" in page.text


def test_the_snippet_appears_with_the_export(run_dir: Path) -> None:
    assert "Use this model" not in Page(write_report(run_dir)).text
    (run_dir / "export").mkdir()
    (run_dir / "export" / "model.safetensors").touch()
    text = Page(write_report(run_dir)).text
    assert f"pz.create_model('local-dir:{(run_dir / 'export').as_posix()}', pretrained=True)" in text


def test_the_command_line_writes_the_report_and_explains_a_wrong_folder(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run_dir), "--output", str(run_dir / "page.html"), "--title", "Kitchen"]) == 0
    assert capsys.readouterr().out.strip() == str(run_dir / "page.html")
    assert "Kitchen" in Page(run_dir / "page.html").text
    assert main([str(run_dir / "missing")]) == 1
    assert "is not a folder" in capsys.readouterr().err


def test_durations_read_well() -> None:
    assert [duration(value) for value in (47.6, 362, 12000, math.nan)] == ["48 s", "6 min 02 s", "3 h 20 min", ""]
