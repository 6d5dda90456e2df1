"""One self-contained page about a run: `report.html` opens offline, from a mail, anywhere.

It is made of the files of the run folder alone (`report.run_files` lists them), so it can be made again at any time and
for a run that is still going: `python -m ponder_zoo.report RUN_DIR`.
"""

from __future__ import annotations

import base64
import datetime
import gzip
import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import write_atomic
from ..version import __version__
from .figures import CONSTANT, ClassBar, class_bars, key_figures, metric_style, readable
from .run_files import RunFiles, json_ready, read_run

_TEMPLATES = Path(__file__).parent / "templates"
_INSTALL = "Run: pip install jinja2 plotly pillow"
_MAX_PICTURES = 24  # of one series; evenly chosen, first and last included
_MAX_CURVE_POINTS = 1500
_BOOKKEEPING = {"epoch", "time", "seconds", "timestamp", "_timestamp", "_runtime", "elapsed", "wall_time", "views"}
_TASKS = {"pretrain": "Pre-training of", "finetune": "Fine-tuning of", "evaluate": "Evaluation of"}


def write_report(
    run_dir: str | os.PathLike[str],
    *,
    title: str = "",
    path: str | os.PathLike[str] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write the report of a run folder and return its path; missing files are missing sections, not errors.

    Args:
        run_dir: the run folder.
        title: heading; empty = from `run.json`, else from task and model.
        path: where to; None = `run_dir/report.html`.
        notes: further remarks for the section of warnings.

    Raises:
        FileNotFoundError: if there is no such folder.
        ImportError: if jinja2, plotly or Pillow is not installed.
    """
    run = read_run(run_dir)
    page = render_report(run, title=title, notes=notes)
    target = run.run_dir / "report.html" if path is None else Path(path)
    return write_atomic(target, page)


def render_report(run: RunFiles, *, title: str = "", notes: Sequence[str] = ()) -> str:
    """The page as text. Everything from the run is escaped; numbers that are not finite are gaps."""
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise ImportError(f"The HTML report is filled in with jinja2, which is not installed. {_INSTALL}") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts, clouds = _charts(run.metrics), _clouds(run.clouds)
    problems = list(run.problems)
    series = _picture_series(run.previews, problems)
    remarks = [*notes, *(run.info.get("notes") or ()), *problems, *_non_finite(run.metrics)]
    return environment.get_template("report.html.j2").render(
        title=title or str(run.info.get("title") or "") or _heading(run),
        status=str(run.info.get("status") or ("finished" if run.evaluation else "")),
        facts=_facts(run),
        figures=key_figures(run.evaluation),
        remarks=[str(remark) for remark in remarks],
        series=series,
        bar_tables=[table for table in _bar_tables(run.evaluation) if table[2]],
        curve_rows=_curve_rows(run.metrics),
        has_charts=bool(charts),
        cloud_points=len(run.clouds.get("coord", ())),
        config_lines=_config_lines(run.config),
        machine=_machine(run.info.get("system")),
        command=str(run.info.get("command") or ""),
        snippet=_snippet(run),
        payload=Markup(_script_json({"charts": charts, "clouds": clouds})),
        plotly=_packed_plotly() if charts or clouds else "",
        css=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
        js=Markup((_TEMPLATES / "report.js").read_text(encoding="utf-8")),
        version=__version__,
        run_dir=str(run.run_dir),
        written=datetime.datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
    )


def _script_json(value: Any) -> str:
    """JSON that may stand inside <script>: no text in it can close the element or open a comment."""
    text = json.dumps(json_ready(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _packed_plotly() -> str:
    """plotly.js, gzip and base64: 2.0 MB instead of 4.8; the browser unpacks it (DecompressionStream, since 2023)."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError(f"Curves and 3D views are drawn by plotly, which is not installed. {_INSTALL}") from error
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


def _bar_tables(evaluation: Mapping[str, Any]) -> list[tuple[str, str, list[ClassBar]]]:
    """Heading, name of the score, and bars."""
    tables = [
        ("Intersection over union by class", "IoU", "iou"),
        ("Average precision of instances (AP50)", "AP50", "ap50"),
    ]
    return [(heading, score, class_bars(evaluation, key)) for heading, score, key in tables]


# Head


def _heading(run: RunFiles) -> str:
    task, model = str(run.info.get("task") or ""), str(run.info.get("model") or "")
    if task and model:
        return f"{_TASKS.get(task, readable(task) + ' of')} {model}"
    return readable(task) if task else run.run_dir.resolve().name


def _facts(run: RunFiles) -> list[tuple[str, str]]:
    system = run.info.get("system")
    system = system if isinstance(system, Mapping) else {}
    steps = [steps[-1] for steps, _ in run.metrics.values() if steps]
    commit = str(system.get("commit") or "")[:10]
    wall_time = run.info.get("wall_time")
    if wall_time is None and "seconds" in run.metrics:
        wall_time = max(run.metrics["seconds"][1])
    facts = [
        ("Device", str(run.info.get("device") or "")),
        ("Time", duration(wall_time) if isinstance(wall_time, (int, float)) else ""),
        ("Steps", f"{max(steps):,.0f}" if steps else ""),
        ("Commit", commit + (" + changes" if commit and system.get("uncommitted_changes") else "")),
    ]
    return [(name, value) for name, value in facts if value]


def duration(seconds: float) -> str:
    """For people: `48 s`, `6 min 02 s`, `3 h 20 min`."""
    if not math.isfinite(seconds):
        return ""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    return (
        f"{total // 60} min {total % 60:02d} s" if total < 3600 else f"{total // 3600} h {total % 3600 // 60:02d} min"
    )


def _non_finite(metrics: Mapping[str, tuple[list[float], list[float]]]) -> list[str]:
    remarks = []
    for name, (steps, values) in metrics.items():
        bad = [step for step, value in zip(steps, values, strict=True) if not math.isfinite(value)]
        if bad:
            remarks.append(
                f"{name} was not finite at {len(bad)} of {len(steps)} logged steps (first: step {bad[0]:.0f})."
            )
    return remarks


# Pictures


def _picture_series(paths: Sequence[Path], problems: list[str]) -> list[dict[str, Any]]:
    """Previews grouped by name, ordered by step, as data URIs: [{"label", "pictures": [{"step", "src", "alt"}]}]."""
    series: dict[str, list[tuple[int | None, Path]]] = {}
    for path in paths:
        found = re.fullmatch(r"(?:step_?)?0*(\d+)[_-]?(.*)", path.stem)
        name, step = (found.group(2) or "views", int(found.group(1))) if found else (path.stem, None)
        series.setdefault(name, []).append((step, path))
    result = []
    for name, entries in series.items():
        chosen = np.unique(np.linspace(0, len(entries) - 1, min(len(entries), _MAX_PICTURES)).round().astype(int))
        entries = sorted(entries, key=lambda entry: entry[0] if entry[0] is not None else -1)
        pictures = []
        for step, path in (entries[index] for index in chosen):
            caption = "" if step is None else f"Step {step:,}"
            try:
                width, height, source = _data_uri(path)
            except OSError as error:  # Pillow's word for a damaged file, too
                problems.append(f"{path.name} could not be read and was left out ({error}).")
                continue
            alt = f"{readable(name)}{', ' + caption.lower() if caption else ''}"
            pictures.append({"caption": caption, "src": source, "alt": alt, "width": width, "height": height})
        if pictures:
            result.append({"label": readable(name), "pictures": pictures})
    return result


def _data_uri(path: Path) -> tuple[int, int, str]:
    """Width, height and the picture itself as a data URI; kept, since a run writes its report again and again."""
    status = path.stat()
    return _encode(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)
def _encode(path: Path, changed: int, size: int) -> tuple[int, int, str]:
    """As WebP where that is smaller than the PNG (usually by three times)."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"Pictures are packed with Pillow, which is not installed. {_INSTALL}") from error
    raw = path.read_bytes()
    with Image.open(io.BytesIO(raw)) as image:
        shape = image.size
        packed = io.BytesIO()
        image.convert("RGB").save(packed, format="WEBP", quality=78, method=4)
    kind, data = ("webp", packed.getvalue()) if packed.tell() < len(raw) else ("png", raw)
    return *shape, f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


# Curves


def _charts(metrics: Mapping[str, tuple[list[float], list[float]]]) -> list[dict[str, Any]]:
    """What plotly draws: [{"title", "series": [{"name", "x", "y"}]}], losses first."""
    charts: dict[str, list[dict[str, Any]]] = {}
    for name, (steps, values) in metrics.items():
        if not _is_curve(name, values):
            continue
        title, label = _chart_of(re.sub(r"^(val|eval|test|train|holdout)_", r"\1/", name))
        keep = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _MAX_CURVE_POINTS)).round().astype(int))
        x, y = [steps[index] for index in keep], [_short(values[index]) for index in keep]
        charts.setdefault(title, []).append({"name": label, "x": x, "y": y})
    ordered = sorted(charts, key=lambda title: (_rank(title), list(charts).index(title)))
    return [{"title": title, "series": charts[title]} for title in ordered]


def _is_curve(name: str, values: Sequence[float]) -> bool:
    """Whether a logged number is worth a chart: no book-keeping, no difference of two others, not zero throughout."""
    last = re.sub(r"^(val|eval|test|train|holdout)_", "", name.rpartition("/")[2])
    derived = last.endswith(("_gain", "_ratio"))
    return last not in _BOOKKEEPING and not derived and any(math.isfinite(value) and value != 0.0 for value in values)


def _chart_of(name: str) -> tuple[str, str]:
    """Title of the chart that a metric belongs to, and its name there."""
    prefix, _, last = name.rpartition("/")
    if last.endswith(CONSTANT):  # a baseline belongs beside what it is compared with
        title, label = _chart_of(name.removesuffix(CONSTANT))
        return title, f"{label} constant"
    if "loss" in name.lower() and last.lower() in ("loss", "total", "total_loss"):
        return "Loss", prefix.replace("/", " ") or "total"
    if prefix and "loss" in prefix.lower():
        return "Loss terms", " ".join(part for part in name.split("/") if part not in ("train", "loss", "losses"))
    if prefix and prefix.rpartition("/")[2].lower() in ("val", "eval", "test", "train", "holdout"):
        return metric_style(last).label, prefix.replace("/", " ")  # one chart for train and val of a metric
    if prefix:
        return readable(prefix), readable(last)
    if name.startswith("loss_") or name.endswith("_loss"):
        return "Loss terms", name.removeprefix("loss_").removesuffix("_loss").replace("_", " ")
    if name in ("rgb", "depth", "sdf", "eikonal", "free_space", "normal", "semantic", "ce", "lovasz"):
        return "Loss terms", name.replace("_", " ")
    if name == "lr" or name.startswith("lr_") or "learning_rate" in name:
        return "Learning rate", name.removeprefix("lr_")
    return metric_style(name).label, readable(name)


def _rank(title: str) -> int:
    lower = title.lower()
    order = (lower == "loss", lower == "loss terms", "psnr" in lower or "iou" in lower, "depth" in lower)
    late = ("learning rate" in lower, "second" in lower or "time" in lower or "memory" in lower or "grad" in lower)
    return order.index(True) if any(order) else 5 + sum(index + 1 for index, hit in enumerate(late) if hit)


def _short(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _curve_rows(metrics: Mapping[str, tuple[list[float], list[float]]]) -> list[dict[str, str]]:
    """First, last, smallest and largest value of each curve: the same in words, for those who cannot see the charts."""
    rows = []
    for name, (_, values) in metrics.items():
        finite = [value for value in values if math.isfinite(value)]
        if finite and _is_curve(name, values):
            numbers = {"first": finite[0], "last": finite[-1], "smallest": min(finite), "largest": max(finite)}
            rows.append({"name": name} | {key: f"{value:.4g}" for key, value in numbers.items()})
    return rows


# Clouds


def _clouds(clouds: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Coordinates as 16-bit steps of the box's longest side (a room: 0.1 mm) and colours as bytes, in base64."""
    if not clouds or len(clouds["coord"]) == 0:
        return {}
    coord = clouds["coord"].astype(np.float64)
    low = coord.min(0)
    step = max(float((coord.max(0) - low).max()), 1e-6) / 65535
    quantised = np.round((coord - low) / step).astype("<u2")
    names = [name for name in clouds if name != "coord"]
    labels = {"color": "Input colours", "feature_rgb": "Learned features, PCA colours"}
    return {
        "count": len(coord),
        "low": low.tolist(),
        "step": step,
        "coord": base64.b64encode(quantised.tobytes()).decode(),
        "cut": _ceiling_cut(coord[:, 2]),
        "top": float(coord[:, 2].max()),
        "colorings": [
            {
                "label": labels.get(name, readable(name.removesuffix("_rgb"))),
                "rgb": base64.b64encode(clouds[name].astype(np.uint8).tobytes()).decode(),
            }
            for name in sorted(names, key=lambda name: (name != "color", name != "feature_rgb", name))
        ],
    }


def _ceiling_cut(height: NDArray[Any]) -> float:
    """Height below which to show a cloud at first: under the ceiling where one hides the room, else everything."""
    low, high = float(height.min()), float(height.max())
    slab = 0.08 * (high - low)
    share = float((height > high - slab).mean())
    # 8 % of the height with over 12 % of the points can only be a horizontal surface on top.
    return high - slab if share > 0.12 and high - low > 1.5 else high


# Tables


def _config_lines(text: str) -> list[dict[str, Any]]:
    """Lines of a YAML file, split so that keys and comments can be coloured."""
    lines = []
    for line in text.rstrip().splitlines():
        found = re.fullmatch(r"(\s*(?:- )?)([\w./-]+)(:(?:\s.*)?)", line)
        indent, key, rest = found.groups() if found else ("", "", line)
        lines.append({"indent": indent, "key": key, "rest": rest})
    return lines


def _machine(system: Any) -> list[tuple[str, str]]:
    if not isinstance(system, Mapping):
        return []
    rows = []
    for key, value in system.items():
        if isinstance(value, Mapping):
            rows += [(str(name), str(version)) for name, version in value.items()]
            continue
        rows.append(("ponder_zoo" if key == "ponder_zoo" else readable(str(key)), _shown(value)))
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "–" if value is None or value == "" else str(value)


def _snippet(run: RunFiles) -> str:
    """How to use the exported model; empty while there is none."""
    export = run.run_dir / "export"
    if not (export / "model.safetensors").is_file():
        return ""
    source = repr("local-dir:" + export.as_posix())
    return (
        "import ponder_zoo as pz\n\n"
        f"model = pz.create_model({source}, pretrained=True).eval()\n"
        "points = pz.PointBatch.from_list([{'coord': xyz, 'feat': feat}])  # columns: model.pretrained_cfg\n"
        "features = model.forward_point_features(points)  # (N, model.num_features)\n\n"
        "# the same encoder with a head for your 20 classes, to fine-tune\n"
        f"segmenter = pz.create_model({source}, pretrained=True, num_classes=20)"
    )
