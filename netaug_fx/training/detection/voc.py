"""Pascal VOC's format: one XML file for each image, and lists of names (Everingham et al., IJCV 2010).

Pixels count from 1 and corners belong to the box there, so that a box over the first pixel alone is 1, 1, 1, 1; here it
is 0, 0, 1, 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from netaug_fx.errors import DataError
from netaug_fx.training.data.locations import need_folder
from netaug_fx.training.detection.annotated_images import LARGEST_SIDE, AnnotatedImages, Size, annotated_task
from netaug_fx.training.detection.annotations import Collector
from netaug_fx.training.detection.data_config import DetectionDataConfig
from netaug_fx.training.detection.detection_task import DetectionTask

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
LAYOUT = (
    "Expected DIR/VOCdevkit/VOC2007/{Annotations,ImageSets/Main,JPEGImages}, and the same of VOC2012 where you have "
    "it. Get them with: python -c \"import torchvision; torchvision.datasets.VOCDetection('DIR', '2012', 'trainval', "
    "download=True)\", and likewise '2007' with 'trainval' and 'test'."
)

# VOC writes 0 and 1; programs that write its format, words.
_DIFFICULT = {
    **dict.fromkeys(("0", "0.0", "false", "no", "unspecified", ""), False),
    **dict.fromkeys(("1", "1.0", "true", "yes"), True),
}

_REMEDY = "Repair the annotations; sets with classes that are not VOC's twenty are read in COCO's format (--data coco)."

Part = tuple[str, str]
"""A year's folder and the name of a list in it."""


def load_voc(config: DetectionDataConfig, seed: int) -> DetectionTask:
    """``--data voc --data-dir DIR``: trains on ``trainval`` of 2007 and 2012 and validates on ``test`` of 2007.

    That is the usual "07+12" protocol, with the years that are there. Without the test part of 2007 it trains on
    ``train`` and validates on ``val``.

    Raises:
        DataError: a folder, a list, an annotation or an image is missing or cannot be read; torchvision is asked for
            and not installed.
    """
    root = need_folder(config, LAYOUT)
    root = root / "VOCdevkit" if (root / "VOCdevkit").is_dir() else root
    train, val = _parts(root)
    return annotated_task(config, read_voc(root, train), read_voc(root, val), CLASSES)


def _parts(root: Path) -> tuple[list[Part], list[Part]]:
    """What to train on and what to validate on, of what is there."""
    years = [year for year in ("VOC2007", "VOC2012") if (root / year / "ImageSets" / "Main").is_dir()]
    if not years:
        raise DataError(f"no Pascal VOC in {root}: there is neither VOC2007 nor VOC2012 with ImageSets/Main. {LAYOUT}")
    if _list(root, ("VOC2007", "test")).is_file():
        return [(year, "trainval") for year in years], [("VOC2007", "test")]
    return [(year, "train") for year in years], [(year, "val") for year in years]


def _list(root: Path, part: Part) -> Path:
    return root / part[0] / "ImageSets" / "Main" / f"{part[1]}.txt"


def read_voc(root: Path, parts: list[Part]) -> AnnotatedImages:
    """The images of some lists with their boxes; difficult ones are ignored, images without boxes kept.

    Boxes that cannot be used are counted in the result's ``skipped``.

    Raises:
        DataError: a list or an annotation is missing, broken or lacks something; images are missing or cannot be read.
    """
    named = [(root / part[0], name) for part in parts for name in _names(_list(root, part))]
    trees = [(year / "Annotations" / f"{name}.xml") for year, name in named]
    parsed = [_parsed(file) for file in trees]
    collector = Collector([size for size, _ in parsed])
    for place, (file, (_, objects)) in enumerate(zip(trees, parsed, strict=True)):
        for item in objects:
            _collect(collector, place, item, file)
    what = f"Pascal VOC in {root}, {' and '.join('/'.join(part) for part in parts)}"
    paths = [year / "JPEGImages" / f"{name}.jpg" for year, name in named]
    return AnnotatedImages(paths, collector.sizes, collector.boxes(what, _REMEDY), collector.skipped, what)


def _names(file: Path) -> Iterator[str]:
    """The names of images in a list; lists of one class have a flag behind each."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"list {file} cannot be read: {error}. {LAYOUT}") from None
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise DataError(f"list {file} is empty. {LAYOUT}")
    yield from names


def _parsed(file: Path) -> tuple[Size, list[ElementTree.Element]]:
    """The size of an image, and its objects."""
    again = "Unpack the archive of this year again, or correct the file."
    try:
        tree = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter two are of unknown encodings
        raise DataError(f"annotation {file} is cut short or no XML: {error}. {again}") from None
    except OSError as error:
        raise DataError(f"annotation {file} cannot be read: {error}. {again}") from None
    width, height = (_number(tree, f"size/{name}") for name in ("width", "height"))
    if width is None or height is None or not (1 <= width <= LARGEST_SIDE and 1 <= height <= LARGEST_SIDE):
        raise DataError(f"annotation {file} has no size of its image, or none above zero. {again}")
    return (int(width), int(height)), tree.findall("object")


def _number(element: ElementTree.Element, path: str) -> float | None:
    """The number below an element, or None where there is none; some of VOC's are fractions."""
    try:
        return float(element.findtext(path) or "")
    except ValueError:
        return None


def _collect(collector: Collector, place: int, item: ElementTree.Element, file: Path) -> None:
    """Take one object's box, or count why not."""
    name = (item.findtext("name") or "").strip()
    corners = [_number(item, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
    where = f"{name or 'object without a name'} in {file.name}: {corners}"
    xmin, ymin, xmax, ymax = corners
    if not name or xmin is None or ymin is None or xmax is None or ymax is None:
        return collector.skipped.add("malformed", where)
    if name not in CLASSES:
        return collector.skipped.add("unknown_class", where)
    flag = (item.findtext("difficult") or "0").strip().lower()
    if flag not in _DIFFICULT:
        return collector.skipped.add("malformed", f"{where}, difficult {flag!r}"[:160])
    return collector.add(place, (xmin - 1, ymin - 1, xmax, ymax), CLASSES.index(name), _DIFFICULT[flag], where)
