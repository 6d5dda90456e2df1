"""Facts about the official PonderV2 release: files, data sets, and the classes of its text-aligned heads."""

from __future__ import annotations

from typing import Any

from ._config import PretrainedCfg

REPO = "HaoyiZhu/PonderV2"
URL = f"https://huggingface.co/{REPO}"
CONDITIONS = ("ScanNet", "S3DIS", "Structured3D")  # order of the norms
TABLE_ORDER = ("Structured3D", "ScanNet", "S3DIS")  # of `embedding_table`, unlike that of the norms
TERMS = (
    "those of ScanNet, S3DIS and Structured3D (research, non-commercial use), beside what the authors of the weights "
    f"say at {URL}"
)
# Rows of the official table of class embeddings.
CLASS_NAMES = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "bookcase"),
    *("picture", "counter", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "ceiling", "refrigerator"),
    *("television", "shower curtain", "nightstand", "toilet", "sink", "lamp", "bathtub", "garbagebin", "board", "beam"),
    *("column", "clutter", "other structure", "other furniture", "other property"),
)
# Which row stands for each label. S3DIS's do not follow its label order (ceiling has the row of "wall", wall that of
# "chair", ...): a defect of the official code with which the released weights were trained, and which they need.
CLASSES: dict[str, list[int]] = {
    "ScanNet": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 20, 22, 24, 25, 27, 34],
    "S3DIS": [0, 1, 4, 5, 6, 7, 8, 10, 19, 29, 30, 31, 32],
    "Structured3D": [0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 14, 15, 16, 17, 18, 19, 20, 21, 23, 25, 26, 33, 34, 35],
}
LABELS: dict[str, tuple[str, ...]] = {
    "ScanNet": tuple(CLASS_NAMES[row] for row in CLASSES["ScanNet"]),
    "Structured3D": tuple(CLASS_NAMES[row] for row in CLASSES["Structured3D"]),
    "S3DIS": (
        *("ceiling", "floor", "wall", "beam", "column", "window", "door", "table", "chair", "sofa", "bookcase"),
        *("board", "clutter"),
    ),
}
HEAD_KEYS = {  # of the text-aligned head: official -> ours
    "proj_head.weight": "head.proj.weight",
    "proj_head.bias": "head.proj.bias",
    "class_embedding": "head.class_embedding",
    "logit_scale": "head.logit_scale",
}
POINTGROUP_KEYS = {"bias_head.": "offset_head.", "seg_head.": "encoder.head."}  # beside the encoder's: official -> ours
PRETRAINED = "checkpoints/ponderv2-ppt-pretrain-scannet-s3dis-structured3d.pth"
FINE_TUNED = (
    "checkpoints/ponderv2-ppt-ft-{task}-{data}.pth"  # semseg: scannet, scannet200, s3dis; insseg: the first two
)


def text_head(embed_dim: int = 512) -> dict[str, Any]:
    """`text_head` of a SparseUNet with the official classes."""
    return {"embed_dim": embed_dim, "num_embeddings": len(CLASS_NAMES), "classes": CLASSES}


_DATA = "scannet_s3dis_structured3d"
_COMMON: dict[str, Any] = {
    "hf_hub_id": REPO,
    "origin_url": URL,
    "training_data": "ScanNet, S3DIS and Structured3D",
    "training_data_license": TERMS,
}


def released_cfgs(architecture: str) -> dict[str, PretrainedCfg]:
    """The pre-trained and the three segmentation checkpoints as variants of an architecture, the default one first."""
    cfgs = {
        _DATA: PretrainedCfg(
            hf_hub_filename=PRETRAINED,
            condition="ScanNet",
            description="Pre-trained by rendering, without a head.",
            **_COMMON,
        )
    }
    for condition in ("ScanNet", "S3DIS"):
        data = condition.lower()
        cfgs[f"{_DATA}_ft_{data}"] = PretrainedCfg(
            hf_hub_filename=FINE_TUNED.format(task="semseg", data=data),
            condition=condition,
            num_classes=len(CLASSES[condition]),
            label_names=LABELS[condition],
            model_args={"head": "text", "text_head": text_head()},
            description=f"Pre-trained by rendering, then fine-tuned for semantic segmentation of {condition}.",
            **_COMMON,
        )
    cfgs[f"{_DATA}_ft_scannet200"] = PretrainedCfg(
        hf_hub_filename=FINE_TUNED.format(task="semseg", data="scannet200"),
        condition="ScanNet",
        num_classes=200,
        description="Pre-trained by rendering, then fine-tuned for the 200 classes of ScanNet200.",
        **_COMMON,
    )
    return {f"{architecture}.{tag}": cfg for tag, cfg in cfgs.items()}


def released_instance_cfgs(architecture: str) -> dict[str, PretrainedCfg]:
    """The two instance segmentation checkpoints as variants of an architecture, the one for 20 classes first."""
    labels = {"scannet": LABELS["ScanNet"], "scannet200": ()}
    return {
        f"{architecture}.{_DATA}_ft_{data}": PretrainedCfg(
            hf_hub_filename=FINE_TUNED.format(task="insseg", data=data),
            condition="ScanNet",
            num_classes=len(labels[data]) or 200,
            classifier="encoder.head",
            label_names=labels[data],
            description=f"Pre-trained by rendering, then fine-tuned for instance segmentation ({data}).",
            **_COMMON,
        )
        for data in labels
    }
