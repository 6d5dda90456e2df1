"""The README of a published model: front matter that the Hub reads, and what a user must know."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

CARD_MARK = "<!-- written by ponder_zoo; remove this line to keep your edits when exporting again -->"
UNPUBLISHED = "local-dir:PATH_TO_THIS_FOLDER"  # the model's name in cards of folders


def model_card(
    config: Mapping[str, Any], metadata: Mapping[str, Any], files: Collection[str], repo_id: str | None = None
) -> str:
    """Markdown of the card.

    Args:
        config: the content of config.json.
        metadata: what `save_for_hf` was given.
        files: names in the folder; the card speaks of the renderer, reference and preview only where there are some.
        repo_id: where it is published, if it is.
    """
    title = repo_id.split("/")[1] if repo_id else config["architecture"]
    lines = [*_front_matter(config, metadata, repo_id), CARD_MARK, f"# {title}", ""]
    cfg = config["pretrained_cfg"]
    lines += [_text(cfg["description"]), ""] if cfg.get("description") else []
    if "preview.png" in files:
        lines += ["![Rendered by the renderer that was trained with this encoder](preview.png)", ""]
    lines += _facts(config)
    lines += _columns(config["point_cfg"])
    lines += _usage(config, files, f"hf-hub:{repo_id}" if repo_id else UNPUBLISHED)
    if config.get("metrics"):
        lines += ["## Metrics", "", "| metric | value |", "|---|---|"]
        lines += [f"| {_text(name)} | {number(value)} |" for name, value in config["metrics"].items()]
        lines.append("")
    lines += _training(config.get("training", {}))
    if metadata.get("known_failures"):
        lines += ["## Known failures", "", _text(metadata["known_failures"]), ""]
    lines += _citation(cfg.get("paper_ids", ()))
    return "\n".join(lines)


def _front_matter(config: Mapping[str, Any], metadata: Mapping[str, Any], repo_id: str | None) -> list[str]:
    """YAML in which every value is written as JSON, a subset of YAML: no text can add a key."""
    cfg = config["pretrained_cfg"]
    rendering = ["neural-rendering"] if "renderer" in config else []
    segmentation = ["semantic-segmentation"] if config["num_classes"] else ["feature-extraction"]
    values: dict[str, Any] = {"library_name": "ponder_zoo"}
    if cfg.get("license"):
        values["license"] = cfg["license"]
    if metadata.get("base_model"):
        values["base_model"] = metadata["base_model"]
    values["tags"] = ["point-cloud", "3d", "sparse-convolution", *segmentation, *rendering]
    numbers = {name: value for name, value in config.get("metrics", {}).items() if isinstance(value, int | float)}
    if numbers and repo_id:
        task = "semantic-segmentation" if config["num_classes"] else "feature-extraction"
        data = str(cfg.get("training_data") or "not stated")
        result = {
            "task": {"type": task},
            "dataset": {"name": data, "type": "unknown"},
            "metrics": [{"type": name, "name": name, "value": value} for name, value in numbers.items()],
        }
        values["model-index"] = [{"name": repo_id.split("/")[1], "results": [result]}]
    return ["---", *(f"{key}: {json.dumps(value)}" for key, value in values.items()), "---"]


def _facts(config: Mapping[str, Any]) -> list[str]:
    cfg, point_cfg = config["pretrained_cfg"], config["point_cfg"]
    head = f"{config['num_classes']} classes" if config["num_classes"] else "none (features)"
    if cfg.get("label_names"):
        head += ": " + ", ".join(cfg["label_names"])
    rows = {
        "Architecture": f"`{config['architecture']}`",
        "Grid size": f"{point_cfg['grid_size']} m",
        "Features per point": config["num_features"],
        "Head": head,
        "Default condition": cfg.get("condition"),
        "Renderer": config["renderer"]["architecture"] if "renderer" in config else None,
        "Training data": cfg.get("training_data") or "not stated",
        "Terms of the training data": cfg.get("training_data_license") or "not stated",
        "License of the weights": cfg.get("license") or "not stated",
        "Origin": cfg.get("origin_url"),
        "Written by": f"ponder_zoo {config['library_version']}, config format {config['format_version']}",
    }
    return ["| | |", "|---|---|", *(f"| {name} | {_text(value)} |" for name, value in rows.items() if value), ""]


def _columns(cfg: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Input columns",
        "",
        "`create_transform` makes them from raw arrays: (raw - mean) / std, in this order.",
        "",
    ]
    lines += ["| column | mean | std | where absent |", "|---|---|---|---|"]
    for name, mean, std, fill in zip(cfg["feature_columns"], cfg["mean"], cfg["std"], cfg["fill"], strict=True):
        lines.append(f"| {_text(name)} | {mean:g} | {std:g} | {'must be given' if fill is None else f'{fill:g}'} |")
    return [*lines, ""]


def _usage(config: Mapping[str, Any], files: Collection[str], name: str) -> list[str]:
    lines = [
        "## Use",
        "",
        "```python",
        "import ponder_zoo as pz",
        "",
        f'model = pz.create_model("{name}", pretrained=True)',
    ]
    lines += ["features = model.forward_features(points)  # points: a pz.PointBatch"]
    if config["num_classes"]:
        lines.append("logits = model(points)  # (N, num_classes)")
    if "pretrainer_args" in config:
        lines.append(f'ponder = pz.create_pretrainer("{name}", pretrained=True)  # with the renderer')
    elif "renderer" in config:
        lines.append(f'renderer = pz.create_renderer("{name}", pretrained=True)')
    if "reference.safetensors" in files:
        lines.append(f'print(pz.verify("{name}"))  # replays the stored reference on your machine')
    return [*lines, "```", ""]


def _training(facts: Mapping[str, Any]) -> list[str]:
    if not facts:
        return []
    lines = ["## Training", ""]
    if "command" in facts:
        lines += ["```bash", _text(facts["command"]), "```", ""]
    rows = [f"| {_text(name)} | {_text(value)} |" for name, value in facts.items() if name != "command"]
    return [*lines, *(["| | |", "|---|---|", *rows, ""] if rows else [])]


def _citation(paper_ids: Collection[str]) -> list[str]:
    arxiv = [paper.removeprefix("arXiv:") for paper in paper_ids if paper.startswith("arXiv:")]
    lines = ["## Citation", ""]
    if "2310.08586" in arxiv:
        lines += [
            "```bibtex",
            "@article{zhu2023ponderv2,",
            "  title   = {PonderV2: Pave the Way for 3D Foundation Model with A Universal Pre-training Paradigm},",
            "  author  = {Zhu, Haoyi and Yang, Honghui and Wu, Xiaoyang and Huang, Di and Zhang, Sha and",
            "             He, Xianglong and Zhao, Hengshuang and Shen, Chunhua and Qiao, Yu and He, Tong and",
            "             Ouyang, Wanli},",
            "  journal = {arXiv preprint arXiv:2310.08586},",
            "  year    = {2023}",
            "}",
            "```",
        ]
    lines += [f"Paper: https://arxiv.org/abs/{paper}" for paper in arxiv]
    return [*lines, ""]


def number(value: Any) -> str:
    """A metric as text."""
    if isinstance(value, list) and len(value) == 3:  # with the ends of its interval
        value, low, high = map(number, value)
        return f"{value} ({low} to {high})"
    return f"{value:.4g}" if isinstance(value, int | float) else _text(value)


def _text(value: Any) -> str:
    """One line that cannot end a table cell."""
    return " ".join(str(value).split()).replace("|", "\\|")
