"""Commands about weights: `convert`, `verify`, `push`, `ship`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._common import Subparsers, access, add_access, add_command, model_name, pick_device, say, say_json

TARGETS = {  # of built-in rooms, by `semantic.targets`
    "none": "built-in rooms, without labels: colour and depth",
    "clusters": "built-in rooms, without labels: colour, depth and clusters of shape contexts",
    "features": "built-in rooms: colour, depth and the features of a 2D model",
    "labels": "built-in rooms: colour, depth and the labels of the generator",
}


def add_commands(commands: Subparsers) -> None:
    parser = add_command(
        commands,
        "convert",
        convert,
        "Convert a checkpoint of the official PonderV2 code to a model folder. The file is read without running any "
        "code in it; sizes are taken from its tensors, and where every number went is said.",
        "ponder-zoo convert ponderv2-ppt-pretrain-scannet-s3dis-structured3d.pth converted",
    )
    parser.add_argument("checkpoint", help=".pth file, or safetensors with the official keys")
    parser.add_argument("out_dir", help="folder to write; made if absent")
    parser.add_argument("--condition", help="default data set of the result (default: from the file's name)")
    parser.add_argument("--license", help="of the weights, for the card (default: the known terms)")

    parser = add_command(
        commands,
        "verify",
        verify,
        "Replay the reference in a model folder or repository on this machine. Exit status 1 if the numbers differ.",
        "ponder-zoo verify hf-hub:org/name --device cuda",
    )
    parser.add_argument(
        "name", help="folder, run folder, local-dir:FOLDER, hf-hub:org/name[@revision] or a model with shipped weights"
    )
    parser.add_argument("--tolerance", type=float, help="largest error, relative to the largest output (default: 1e-3)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... or auto (default: cpu)")
    parser.add_argument("--backend", default="auto", help="of sparse convolutions: auto, torch, triton or spconv")
    parser.add_argument("--json", action="store_true", help="for programs")
    add_access(parser)

    parser = add_command(
        commands,
        "push",
        push,
        "Publish a model folder on the Hub in one commit. A README edited there is kept.",
        "ponder-zoo push runs/pretrain/export org/name --private",
    )
    parser.add_argument("directory", help="folder that save_for_hf or convert wrote, or a run folder")
    parser.add_argument("repo", help="org/name; made if it does not exist")
    parser.add_argument("--private", action="store_true", help="when making the repository")
    parser.add_argument("--revision", help="branch to commit to, made if absent (default: main)")
    parser.add_argument("--message", help="of the commit")
    add_access(parser)

    parser = add_command(
        commands,
        "ship",
        ship,
        "Make the weights of a run part of this package: for maintainers, in a clone. Matrices are rounded to half "
        "precision; the card says how to train them again. The run must have finished, on built-in rooms alone.",
        "ponder-zoo ship runs/pretrain sparseunet_ponderv2_tiny.synthetic --metrics metrics.json",
    )
    parser.add_argument("run_dir", metavar="run", help="run folder of recipes/pretrain.py")
    parser.add_argument("name", help="arch.tag that the weights get")
    parser.add_argument(
        "--release", action="store_true", help="into release/ of the repository (40 MB), not the package (8 MB)"
    )
    parser.add_argument(
        "--metrics", help="JSON file of further metrics: name -> value, or [value, low, high] with its interval"
    )
    parser.add_argument("--description", help="of the card (default: what was rendered, and whether it had labels)")
    parser.add_argument("--clone", help="root of the clone to write into (default: where this package lies)")


def convert(options: Any) -> int:
    import ponder_zoo as pz

    metadata = {} if options.license is None else {"license": options.license}
    report = pz.convert(options.checkpoint, options.out_dir, condition=options.condition, metadata=metadata)
    say(f"{report}")
    say(f'Load it with create_model("local-dir:{options.out_dir}", pretrained=True).')
    return 0


def verify(options: Any) -> int:
    import ponder_zoo as pz

    limit = {} if options.tolerance is None else {"tolerance": options.tolerance}
    device = pick_device(options.device)
    report = pz.verify(model_name(options.name), device=device, backend=options.backend, **limit, **access(options))
    if options.json:
        say_json({**vars(report), "passed": report.passed})
    else:
        say(f"{report}")
    return 0 if report.passed else 1


def push(options: Any) -> int:
    from ..models._hub import push_folder

    name = model_name(options.directory)
    if name.startswith("hf-hub:"):
        raise ValueError(f"Expected a folder on this machine, got '{options.directory}'. Pull it first: hf download.")
    commit = push_folder(
        name.removeprefix("local-dir:"),
        options.repo,
        private=options.private,
        revision=options.revision,
        commit_message=options.message,
        **access(options),
    )
    say(f"hf-hub:{options.repo}@{commit}")
    return 0


def ship(options: Any) -> int:
    from ..models._hub import read_config
    from ..models._safety import read_json
    from ..models._ship import ship as write
    from ..train.config import saved_values

    run = Path(options.run_dir)
    export = run / "export"
    metrics = read_config(export).get("metrics", {})
    if options.metrics is not None:
        metrics |= read_json(Path(options.metrics))
    info, settings = read_json(run / "run.json"), saved_values(run / "config.yaml")
    if info.get("status") != "finished":
        raise ValueError(f"Expected a finished run, {run} is {info.get('status')!r}. Start its command again.")
    metadata = {
        "license": "mit",
        "training_data": _rooms(settings),
        "training_data_license": "mit",  # of the generator, a part of this package: no data of others
        "description": options.description or f"Pre-trained by rendering {TARGETS[settings['semantic']['targets']]}.",
        "metrics": metrics,
        "training": _training(info, settings),
        "scene_args": {key: settings[key] for key in ("volume_shape", "margin", "dropout")},
    }
    package = None if options.clone is None else Path(options.clone).resolve() / "ponder_zoo"
    place = "release" if options.release else "package"
    report = write(export, options.name, metadata=metadata, place=place, package=package)
    say(f"{report}")
    say(f'Load it with create_model("{options.name}", pretrained=True).')
    return 0


def _rooms(settings: Mapping[str, Any]) -> str:
    """What a run was trained on, in words that are enough to make it again."""
    from ..data.synthetic import GENERATOR_VERSION
    from ..data.synthetic.label_spaces import SPACES

    data, parts = settings["data"], []
    for name in (part.strip() for part in data["name"].split(",")):
        kind, _, space = name.partition(":")
        if kind != "synthetic":
            raise ValueError(
                f"Expected a run on built-in rooms alone, whose terms are ours; its data.name is {data['name']!r}. "
                "Publish weights of other data on the Hub, with their terms: `ponder-zoo push`."
            )
        seed, sensor = (SPACES[space].seed, SPACES[space].sensor) if space else (0, data["sensor"])
        parts.append(f"{data['scenes']} rooms of seed {seed} ({sensor} sensor{f', as {space}' if space else ''})")
    size = " x ".join(map(str, data["image_size"]))
    return f"built-in rooms, generator version {GENERATOR_VERSION}: {', '.join(parts)}, {data['views']} views of {size}"


def _training(info: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, str]:
    system = info.get("system", {})
    modified = " with uncommitted changes" if system.get("uncommitted_changes") else ""
    facts = {
        "command": f"python {info['command']}",
        "commit": f"{system.get('commit') or 'not known'}{modified}",
        "seed": settings["seed"],
        "steps": settings["max_steps"],
        "machine": ", ".join([f"{system.get('cpu_threads')} threads of {system.get('cpu')}", *system.get("gpus", [])]),
        "torch": system.get("packages", {}).get("torch"),
        "evaluated on": f"{settings['eval_views']} views of {settings['data']['val_scenes']} rooms that training never "
        "saw: psnr of colours (dB), depth_median of errors (m); psnr_gain and depth_ratio: to the best constant",
    }
    return {name: str(value) for name, value in facts.items()}
