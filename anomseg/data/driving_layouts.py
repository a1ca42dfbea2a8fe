"""Describe how driving data sets lie on disk and what their codes mean, one row of a table each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from anomseg.data.class_rule import ClassTable
from anomseg.data.image_folders import FolderLayout

DrivingLayoutName = Literal[
    "cityscapes",
    "cityscapes_train_ids",
    "cityscapes_flat",
    "camvid",
    "camvid_colour",
    "bdd100k",
    "streethazards",
    "lost_and_found",
    "fishyscapes",
    "fishyscapes_static_v1",
    "fishyscapes_static_v2",
    "fishyscapes_static_v3",
    "road_anomaly",
    "smiyc",
    "synboost",
]


@dataclass(frozen=True)
class DrivingLayout:
    """Describe a driving data set.

    Attributes:
        folders: where frames and label files lie, and the table of codes; see `FolderLayout`.
        classes: names of the table that a closed-set net may learn, in the order of its outputs; empty where a set only tests.
        anomalies: names that are anomalous by themselves.
        inliers: names that are normal without being a class to learn.
        partial: whether frames without a label file are to be expected: they are predicted, but not tested. All frames of such a set test.
        overlay: template of `.npz` files with an array `rgb` (H, W, 3) that is added to the frame, in grey values; frames without one are
            left out.
    """

    folders: FolderLayout
    classes: tuple[str, ...] = ()
    anomalies: tuple[str, ...] = ()
    inliers: tuple[str, ...] = ()
    partial: bool = False
    overlay: str | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.named) - set(self.folders.table.names))
        if unknown or len(set(self.named)) < len(self.named):
            raise ValueError(
                f"Expected each of {self.named} once and in the table {self.folders.table.names}, but {unknown} are not there."
            )

    @property
    def named(self) -> tuple[str, ...]:
        """Name all that is not void."""
        return (*self.classes, *self.anomalies, *self.inliers)


CITYSCAPES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain"),
    *("sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_OTHERS = tuple(number for number in range(34) if number not in _LABEL_IDS)
_CITY_LABEL_IDS = ClassTable((*CITYSCAPES, *(f"other {number}" for number in _OTHERS)), (*_LABEL_IDS, *_OTHERS))
_CITY_TRAIN_IDS = ClassTable(CITYSCAPES)

CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
_CAMVID_COLOURS = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0)),
    *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192), (0, 0, 0)),
)
_HAZARDS = (
    *("unlabelled", "building", "fence", "other", "pedestrian", "pole", "road line", "road"),
    *("sidewalk", "vegetation", "car", "wall", "sign", "anomaly"),
)
_OBJECTS = tuple(f"object {number}" for number in range(2, 44))
_HARMLESS = tuple(f"object {number}" for number in (31, 33, 34, 36, 37, 38, 39))
_TWO = ClassTable(("inlier", "outlier"))


def _static(version: int) -> DrivingLayout:
    """Describe the published overlays of Fishyscapes Static beside the validation frames of Cityscapes."""
    labels = f"fs_val_v{version}/*_{{name}}_labels.png"
    row = _benchmark("leftImg8bit/val/*/{name}_leftImg8bit.png", labels, partial=True)
    return replace(row, overlay=labels.replace("_labels.png", "_rgb.npz"))


def _benchmark(images: str, masks: str, table: ClassTable = _TWO, partial: bool = False) -> DrivingLayout:
    folders = FolderLayout((images,), masks, table, "index", train=None, val=None, test=None)
    return DrivingLayout(folders, anomalies=("outlier",), inliers=("inlier",), partial=partial)


def _city(kind: str, table: ClassTable) -> FolderLayout:
    """Describe Cityscapes; the official labels of `test` are placeholders without any class, so `val` is tested on."""
    masks = f"gtFine/{{split}}/*/{{name}}_gtFine_{kind}.png"
    return FolderLayout(("leftImg8bit/{split}/*/{name}_leftImg8bit.png",), masks, table, "index", val=None, test="val")


DRIVING_LAYOUTS: Mapping[str, DrivingLayout] = {
    "cityscapes": DrivingLayout(_city("labelIds", _CITY_LABEL_IDS), CITYSCAPES),
    "cityscapes_train_ids": DrivingLayout(_city("labelTrainIds", _CITY_TRAIN_IDS), CITYSCAPES),
    "cityscapes_flat": DrivingLayout(  # as PEBAL and Meta-OoD lay it out
        FolderLayout(
            ("images/city_gt_fine/{split}/{name}_leftImg8bit.png",),
            "annotation/city_gt_fine/{split}/{name}_gtFine.png",
            _CITY_TRAIN_IDS,
            "index",
            test=None,
        ),
        CITYSCAPES,
    ),
    "camvid": DrivingLayout(
        FolderLayout(("{split}/{name}.*",), "{split}annot/{name}.*", ClassTable((*CAMVID, "void"), void=("void",)), "index"), CAMVID
    ),
    "camvid_colour": DrivingLayout(
        FolderLayout(
            ("{split}/{name}.*",), "{split}annot/{name}.*", ClassTable((*CAMVID, "void"), colours=_CAMVID_COLOURS, void=("void",)), "colour"
        ),
        CAMVID,
    ),
    "bdd100k": DrivingLayout(  # BDD-Anomaly is hold_out=["train", "motorcycle", "bicycle"] with hold_out_frames="test"
        FolderLayout(
            ("seg/images/{split}/{name}.jpg",),
            "seg/labels/{split}/{name}_train_id.png",
            _CITY_TRAIN_IDS,
            "index",
            test=None,  # its images have no public labels
        ),
        CITYSCAPES,
    ),
    "streethazards": DrivingLayout(
        FolderLayout(
            ("{area}/images/{split}/{town}/{name}.png",),
            "{area}/annotations/{split}/{town}/{name}.png",
            ClassTable(_HAZARDS, tuple(range(1, 15)), void=("unlabelled",)),
            "index",
            train="training",
            val="validation",
        ),
        _HAZARDS[1:-1],
        ("anomaly",),
    ),
    "lost_and_found": DrivingLayout(  # object ids of obstacles are 2 to 43; those that nobody can hit are left out
        FolderLayout(
            ("leftImg8bit/{split}/*/{name}_leftImg8bit.png",),
            "gtCoarse/{split}/*/{name}_gtCoarse_labelIds.png",
            ClassTable(("background", "road", *_OBJECTS), void=("background", *_HARMLESS)),
            "index",
            val=None,
        ),
        anomalies=tuple(name for name in _OBJECTS if name not in _HARMLESS),
        inliers=("road",),
    ),
    "fishyscapes": _benchmark(  # the published labels beside the frames of Lost and Found, of which 100 are labelled
        "leftImg8bit/*/*/{name}_leftImg8bit.png", "fishyscapes_lostandfound/*_{name}_labels.png", partial=True
    ),
    "fishyscapes_static_v1": _static(1),
    "fishyscapes_static_v2": _static(2),
    "fishyscapes_static_v3": _static(3),
    "road_anomaly": _benchmark("frames/{name}.jpg", "frames/{name}.labels/labels_semantic.png", ClassTable(("inlier", "outlier"), (0, 2))),
    "smiyc": _benchmark("images/{name}.*", "labels_masks/{name}_labels_semantic.png", partial=True),
    "synboost": _benchmark("original/{name}.*", "labels/{name}.png"),
}


def driving_layout_of(chosen: DrivingLayoutName | DrivingLayout) -> DrivingLayout:
    """Look a layout up by name.

    Raises:
        ValueError: there is none of that name.
    """
    if isinstance(chosen, DrivingLayout):
        return chosen
    if chosen not in DRIVING_LAYOUTS:
        raise ValueError(f"Expected a layout of {sorted(DRIVING_LAYOUTS)} or a DrivingLayout, but got {chosen!r}.")
    return DRIVING_LAYOUTS[chosen]
