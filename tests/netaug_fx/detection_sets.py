"""Small data sets for detection, in the formats that COCO and Pascal VOC have on disk."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from netaug_fx.training.detection import DetectionDataConfig

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
Object = tuple[str, Sequence[float | str], bool]


def make_coco(root: Path, annotations: list[Any] | None = None, images: int = 4) -> Path:
    """Images of 40 x 20 pixels in both parts; by default each of them has one box, but for the last, which has none."""
    if annotations is None:
        annotations = [box(k + 1, k + 1, 3 if k % 2 else 7, [k, 2, 10, 8]) for k in range(images - 1)]
    entries = [{"id": k + 1, "file_name": f"{k + 1:03}.png", "width": 40, "height": 20} for k in range(images)]
    content = {"images": entries, "annotations": annotations, "categories": CATEGORIES}
    (root / "annotations").mkdir(parents=True)
    for part in ("train2017", "val2017"):
        (root / part).mkdir()
        for k, entry in enumerate(entries):
            Image.new("RGB", (40, 20), (60 * k, 10, 200)).save(root / part / str(entry["file_name"]))
        coco_file(root, part).write_text(json.dumps(content))
    return root


def coco_file(root: Path, part: str = "train2017") -> Path:
    return root / "annotations" / f"instances_{part}.json"


def box(number: int, image: Any, category: Any, bbox: Any, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, "iscrowd": 0, **more}


def coco_config(root: Path, **settings: object) -> DetectionDataConfig:
    values = {"name": "coco", "dir": str(root), "image_size": 16, "batch_size": 2, **settings}
    return DetectionDataConfig.model_validate(values)


def make_voc(root: Path, year: str, lists: dict[str, dict[str, list[Object]]]) -> Path:
    """A year of VOC: for each list its images of 30 x 20 pixels, each with objects: class, corners, difficult."""
    folder = root / "VOCdevkit" / year
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for part, images in lists.items():
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{name}\n" for name in images))
        for name, objects in images.items():
            Image.new("RGB", (30, 20), (90, 10, 200)).save(folder / "JPEGImages" / f"{name}.jpg")
            (folder / "Annotations" / f"{name}.xml").write_text(voc_xml(name, objects))
    return root


def voc_xml(name: str, objects: list[Object]) -> str:
    lines = [f"<annotation><filename>{name}.jpg</filename>"]
    lines.append("<size><width>30</width><height>20</height><depth>3</depth></size>")
    for label, corners, difficult in objects:
        keys = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        place = "".join(f"<{key}>{value}</{key}>" for key, value in keys)
        lines.append(f"<object><name>{label}</name><difficult>{int(difficult)}</difficult><bndbox>{place}</bndbox>")
        # Parts of people have boxes of their own, which are not objects.
        lines.append("<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>")
    return "\n".join([*lines, "</annotation>"])
