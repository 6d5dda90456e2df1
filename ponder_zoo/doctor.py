"""What of this package is usable on this machine, and the exact command that changes it."""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["ok", "note", "problem"]

PIP = "python -m pip"
# distribution -> the Python versions (3.x) it has wheels for; Linux x86-64 (PyPI, November 2026)
SPCONV_WHEELS: dict[str, range] = {"spconv-cu120": range(8, 12), "spconv-cu126": range(8, 14)}
# import name -> (distribution, what cannot be done without it)
OPTIONAL: dict[str, tuple[str, str]] = {
    "accelerate": ("accelerate", "the recipes"),
    "omegaconf": ("omegaconf", "the recipes' configs"),
    "timm": ("timm", "2D encoders and the recipes' optimizers"),
    "safetensors": ("safetensors", "loading and saving weights"),
    "huggingface_hub": ("huggingface_hub", "names that start with hf-hub:"),
    "PIL": ("pillow", "reading images and writing previews"),
    "jinja2": ("jinja2", "report.html"),
    "plotly": ("plotly", "curves and 3D views of report.html"),
    "scipy": ("scipy", "the built-in scenes and surface metrics"),
    "skimage": ("scikit-image", "extracting meshes"),
    "trimesh": ("trimesh", "writing meshes"),
}

# Run in processes of their own: a broken CUDA library can end the process that imports it, and importing spconv costs
# seconds. Each prints one line of JSON last.
_PROBES = {
    "cuda": """
import json, torch
found = {"build": torch.version.cuda, "available": torch.cuda.is_available(), "devices": []}
if found["available"]:
    for index in range(torch.cuda.device_count()):
        item = torch.cuda.get_device_properties(index)
        x = torch.eye(4, device=f"cuda:{index}")
        found["devices"].append({"name": item.name, "gib": round(item.total_memory / 2**30),
                                 "capability": f"{item.major}.{item.minor}", "works": bool((x @ x).sum().item() == 4)})
print(json.dumps(found))
""",
    "spconv": """
import json, torch, warnings
warnings.simplefilter("ignore")
import spconv, spconv.pytorch as sp
from spconv.core import ConvAlgo
result = {"version": spconv.__version__}
def run(device):
    algo = ConvAlgo.Native if device == "cpu" else None
    layer = sp.SubMConv3d(4, 4, 3, bias=False, algo=algo).to(device)
    index = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.int32, device=device)
    x = torch.ones(2, 4, device=device, requires_grad=True)
    layer(sp.SparseConvTensor(x, index, [4, 4, 4], 1)).features.sum().backward()
    return bool(torch.isfinite(x.grad).all())
for device in ["cpu"] + (["cuda"] if torch.cuda.is_available() else []):
    try:
        result[device] = run(device)
    except Exception as error:
        result[device] = f"{type(error).__name__}: {error}"[:300]
print(json.dumps(result))
""",
    "triton": "import json, triton; print(json.dumps({'version': triton.__version__}))",
    "torchvision": "import json, torchvision; print(json.dumps({'version': torchvision.__version__}))",
}


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    status: Status  # "note": works, but could be more; "problem": something that should work does not
    detail: str
    command: str | None = None  # what to type to change it


@dataclass(frozen=True)
class Diagnosis:
    """What `doctor` found; `print` it, or read the fields."""

    checks: tuple[Check, ...]
    devices: tuple[str, ...]  # usable: "cpu", "cuda:0", ...
    backends: dict[str, tuple[str, ...]]  # sparse backend -> kinds of device it is usable on
    automatic: dict[str, str]  # kind of device -> the backend that `backend="auto"` takes there
    versions: dict[str, str]

    @property
    def ok(self) -> bool:
        """Whether nothing is broken."""
        return all(check.status != "problem" for check in self.checks)

    def __str__(self) -> str:
        marks = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}
        width = max(len(check.name) for check in self.checks)
        lines = []
        for check in self.checks:
            lines.append(f"{marks[check.status]}  {check.name:<{width}}  {check.detail}")
            if check.command is not None:
                lines.append(f"{'':7}  {'':<{width}}  > {check.command}")
        chosen = ", ".join(f"{backend} on {device}" for device, backend in self.automatic.items())
        end = "Nothing is broken." if self.ok else "Something is broken: see PROBLEM above."
        return "\n".join([*lines, "", f"Devices: {', '.join(self.devices)}. backend='auto' takes {chosen}. {end}"])


def doctor(*, probe: bool = True) -> Diagnosis:
    """Look at Python, torch, devices, sparse backends and optional packages. Changes nothing, downloads nothing.

    Args:
        probe: also run CUDA, spconv, triton and torchvision, each in a process of its own (some ten seconds).
            Without it, what is installed is taken to work.

    Example:
        >>> print(doctor(probe=False))  # doctest: +SKIP
    """
    from .report.system import cpu_name, memory_gib, package_versions, spconv_distributions
    from .version import __version__

    spconvs = spconv_distributions()
    installed = {
        "cuda": True,
        "spconv": bool(spconvs),
        "triton": _has("triton"),
        "torchvision": _has("torchvision"),
    }
    found = _run_probes([name for name, there in installed.items() if there]) if probe else _assumed(installed)
    torch_check, cuda = _check_torch(found["cuda"], _driver())
    kinds = ("cpu", *(("cuda",) if cuda else ()))
    spconv_check, spconv_on = _check_spconv(spconvs, found.get("spconv"), sys.version_info[1], cuda=bool(cuda))
    triton_check, triton_on = _check_triton(found.get("triton"), _capability(found["cuda"]) if cuda else None)
    backends = {"torch": kinds, "spconv": spconv_on, "triton": triton_on}
    memory = memory_gib()
    checks = [
        _check_python(sys.version_info[:2], platform.python_version()),
        Check("ponder_zoo", "ok", __version__),
        Check("cpu", "ok", f"{cpu_name() or 'unknown'}{f', {memory:g} GiB of memory' if memory else ''}"),
        torch_check,
        *cuda,
        Check("backend torch", "ok", f"usable on {' and '.join(kinds)}; needs nothing else"),
        spconv_check,
        triton_check,
        *_check_torchvision(found.get("torchvision"), installed=installed["torchvision"]),
        *_check_packages(_has),
    ]
    devices = ("cpu", *(f"cuda:{index}" for index, check in enumerate(cuda) if check.status == "ok"))
    return Diagnosis(tuple(checks), devices, backends, _automatic(kinds, backends), package_versions())


def main() -> int:
    """Print the diagnosis; exit status 1 if something is broken."""
    diagnosis = doctor()
    sys.stdout.write(f"{diagnosis}\n")
    return 0 if diagnosis.ok else 1


# Findings. Each function gets what was observed and is free of side effects, so that every machine can be tested here.


def _check_python(version: tuple[int, ...], text: str) -> Check:
    if version < (3, 11):
        return Check("python", "problem", f"{text}; 3.11 or newer is needed", "uv venv --python 3.11")
    return Check("python", "ok", f"{text} ({platform.system()} {platform.machine()})")


def _check_torch(found: dict[str, Any], driver: str | None) -> tuple[Check, list[Check]]:
    """The check of torch, and one per usable CUDA device."""
    import torch

    version = str(torch.__version__)
    index = " --index-url https://download.pytorch.org/whl/cu126"
    if "error" in found:
        return Check("torch", "problem", f"{version}: asking for CUDA failed: {found['error']}", None), []
    if found["available"]:
        devices = []
        for number, device in enumerate(found["devices"]):
            text = f"{device['name']}, {device['gib']} GiB, compute capability {device['capability']}"
            devices.append(Check(f"cuda:{number}", "ok" if device["works"] else "problem", text))
        return Check("torch", "ok", f"{version}, CUDA {found['build']}"), devices
    if driver is None:
        return Check("torch", "ok", f"{version}; no NVIDIA driver on this machine, everything runs on the CPU"), []
    if found["build"] is None:
        flag = index if sys.platform == "win32" else ""
        command = f"{PIP} install --force-reinstall torch torchvision{flag}"
        return Check("torch", "problem", f"{version} is a build for CPUs, but this machine has {driver}", command), []
    detail = f"{version} for CUDA {found['build']} cannot use {driver}: the driver is older, or the GPU is hidden"
    return Check("torch", "problem", detail, f"{PIP} install --force-reinstall torch torchvision{index}"), []


def _check_spconv(
    names: Sequence[str], found: dict[str, Any] | None, minor: int, *, cuda: bool
) -> tuple[Check, tuple[str, ...]]:
    """The check of spconv, and the kinds of device it is usable on."""
    title = "backend spconv"
    wheel = spconv_wheel(minor, sys.platform, platform.machine())
    if len(names) > 1:
        again = wheel or names[-1]
        command = f"{PIP} uninstall -y {' '.join(names)} cumm && {PIP} install {again}"
        detail = f"{' and '.join(names)} are both installed and overwrite each other's files; keep one"
        return Check(title, "problem", detail, command), ()
    if not names:
        if not cuda:
            return Check(title, "ok", "not installed, and of use on CUDA devices only"), ()
        if wheel is None:
            detail = (
                f"no spconv wheel exists for Python 3.{minor} on {sys.platform} {platform.machine()}; torch is used"
            )
            return Check(title, "note", detail, "uv venv --python 3.11"), ()
        return Check(title, "note", "not installed; faster than torch on CUDA devices", f"{PIP} install {wheel}"), ()
    if found is None or "error" in found:
        reason = (found or {}).get("error", "it was not tried")
        again = f"{PIP} install --force-reinstall {wheel or names[0]}"
        status = "problem" if cuda else "note"  # without a GPU nothing would use it
        return Check(title, status, f"{names[0]} is installed, but importing it failed: {reason}", again), ()
    usable = tuple(device for device in ("cpu", "cuda") if found.get(device) is True)
    text = f"{names[0]} {found['version']}"
    if cuda and "cuda" not in usable:
        again = f"{PIP} install --force-reinstall {wheel or names[0]}"
        return Check(title, "problem", f"{text} fails on this GPU: {found.get('cuda')}", again), usable
    where = " and ".join(usable)
    remark = "" if cuda else "; of use on CUDA devices only, there is none here"
    return Check(title, "ok", f"{text}{f', usable on {where}' if where else ''}{remark}"), usable


def spconv_wheel(minor: int, system: str, machine: str) -> str | None:
    """The spconv distribution with a wheel for Python 3.`minor` on this kind of machine; None if there is none."""
    if system not in ("linux", "win32") or machine.lower() not in ("x86_64", "amd64"):
        return None
    return next((name for name, versions in SPCONV_WHEELS.items() if minor in versions), None)


def _check_triton(found: dict[str, Any] | None, capability: tuple[int, int] | None) -> tuple[Check, tuple[str, ...]]:
    """The check of triton, and the kinds of device it is usable on; `capability` of the first GPU, None without one."""
    from .sparse.backends import TRITON_CAPABILITY

    title = "backend triton"
    if found is None:
        if capability is None:
            return Check(title, "ok", "triton is not installed, and of use on CUDA devices only"), ()
        return Check(title, "note", "not installed; made for CUDA devices", f"{PIP} install triton"), ()
    if "error" in found:
        detail = f"importing triton failed: {found['error']}"
        status = "note" if capability is None else "problem"  # without a GPU nothing would use it
        return Check(title, status, detail, f"{PIP} install --force-reinstall triton"), ()
    text = f"triton {found['version']}"
    if capability is None:
        return Check(title, "ok", f"{text}; of use on CUDA devices only, there is none here"), ()
    if capability < TRITON_CAPABILITY:
        least = ".".join(map(str, TRITON_CAPABILITY))
        return Check(title, "note", f"{text}; needs compute capability {least} or higher, this GPU is older"), ()
    return Check(title, "ok", f"{text}, usable on cuda"), ("cuda",)


def _check_torchvision(found: dict[str, Any] | None, *, installed: bool) -> list[Check]:
    if not installed:
        detail = "not installed; timm, and so 2D encoders and the recipes, cannot be imported without it"
        return [Check("torchvision", "note", detail, f"{PIP} install torchvision")]
    if found is not None and "error" in found:  # almost always a build for another torch
        detail = f"importing it failed, and timm needs it: {found['error']}"
        return [Check("torchvision", "problem", detail, f"{PIP} install --upgrade torch torchvision")]
    return []


def _check_packages(has: Callable[[str], bool]) -> list[Check]:
    missing = {name: OPTIONAL[name] for name in OPTIONAL if not has(name)}
    if not missing:
        return [Check("other packages", "ok", "all there")]
    detail = "; ".join(f"{distribution} is missing: no {what}" for distribution, what in missing.values())
    command = f"{PIP} install {' '.join(distribution for distribution, _ in missing.values())}"
    return [Check("other packages", "note", detail, command)]


def _automatic(kinds: Sequence[str], backends: dict[str, tuple[str, ...]]) -> dict[str, str]:
    from .sparse.backends import preferred

    return {kind: preferred(kind, [name for name, works_on in backends.items() if kind in works_on]) for kind in kinds}


def _capability(found: dict[str, Any]) -> tuple[int, int] | None:
    """Of the first CUDA device, None without one."""
    devices = found.get("devices") or []
    if not devices:
        return None
    major, minor = devices[0]["capability"].split(".")
    return int(major), int(minor)


# Observations


def _has(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _run_probes(names: Sequence[str], *, timeout: float = 120.0) -> dict[str, dict[str, Any]]:
    """Start all probes at once, then collect; a probe that dies or hangs is a finding, not an error."""
    running = {
        name: subprocess.Popen(
            [sys.executable, "-c", _PROBES[name]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for name in names
    }
    return {name: _collect(process, timeout) for name, process in running.items()}


def _collect(process: subprocess.Popen[str], timeout: float) -> dict[str, Any]:
    with process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return {"error": f"no answer within {timeout:g} seconds"}
    if process.returncode != 0:
        last = (err.strip().splitlines() or [f"the process ended with status {process.returncode}"])[-1]
        return {"error": last[:300]}
    try:
        return json.loads(out.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return {"error": f"unexpected answer {out.strip()[-200:]!r}"}


def _assumed(installed: dict[str, bool]) -> dict[str, dict[str, Any]]:
    """What the probes would say if everything installed worked; CUDA is asked in this process."""
    import torch

    from .report.system import distribution_version, gpu_names

    names = gpu_names()
    devices = [{"name": name.rpartition(",")[0], "gib": name.split()[-2], "works": True} for name in names]
    for index, device in enumerate(devices):
        device["capability"] = ".".join(map(str, torch.cuda.get_device_capability(index)))
    cuda = {"build": torch.version.cuda, "available": bool(names), "devices": devices}
    found: dict[str, dict[str, Any]] = {"cuda": cuda}
    for name in ("spconv", "triton", "torchvision"):
        if installed[name]:
            version = (distribution_version(name) or "").split(" ")[0]
            found[name] = {"version": version, "cpu": True} | ({"cuda": True} if names else {})
    return found


def _driver() -> str | None:
    """GPU and driver by nvidia-smi, which works whatever torch was built for; None without an NVIDIA driver."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        return None
    name, _, version = lines[0].rpartition(", ")
    return f"{name} (driver {version})"


if __name__ == "__main__":
    sys.exit(main())
