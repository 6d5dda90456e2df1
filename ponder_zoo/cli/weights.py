"""Commands about weights: `convert`, `verify`, `push`."""

from __future__ import annotations

from typing import Any

from ._common import Subparsers, access, add_access, add_command, model_name, pick_device, say, say_json


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
    parser.add_argument("name", help="folder, run folder, local-dir:FOLDER or hf-hub:org/name[@revision]")
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
