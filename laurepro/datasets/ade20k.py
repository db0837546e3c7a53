"""ADE20K's scene-parsing benchmark: 150 classes; pixels of no class are ignored."""

from __future__ import annotations

from pathlib import Path

from laurepro.datasets import Download, Downloads, Info, _files, _prepare
from laurepro.datasets._layout import Layout, Unreadable
from laurepro.datasets._manifest import read_list
from laurepro.datasets._prepare import JPEGS, PNGS, Original, Originals
from laurepro.errors import LaureproError

INFO = Info(
    name="ade20k",
    classes=tuple(
        """
        wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth,
        door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug,
        field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column,
        signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path,
        stairs, runway, case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table,
        toilet, flower, book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar,
        arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television
        receiver, airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster,
        stage, van, ship, fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket,
        waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal,
        bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan,
        pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag
        """.strip()
        .replace("\n        ", " ")
        .split(", ")
    ),
    description="indoor and outdoor scenes, 150 classes; 22,210 labelled images, and 3,352 for the test server",
    licence="annotations: BSD 3-clause; images: research and education only",
    splits=("train", "val", "trainval", "test"),
    needs=(
        "the folder ADEChallengeData2016 with images/ and annotations/, each with training/ and validation/; "
        "for the test server also release_test with testing/ and list.txt, beside it or in it"
    ),
    source="Zhou et al. 2017; sceneparsing.csail.mit.edu (ADEChallengeData2016.zip, release_test.zip)",
)
LAYOUT = Layout(
    name="ade20k",
    classes=INFO.classes,
    editions={"": {"train": 20_210, "val": 2_000, "trainval": 22_210, "test": 3_352}},
    first=1,
    ignored=(0,),
    unlabelled=("test",),
    optional=("test",),
    disjoint=(("train", "val"), ("trainval", "test")),
)
_DIGEST_FROM = "github.com/zhanghang1989/PyTorch-Encoding, scripts/prepare_ade20k.py"
DOWNLOADS = Downloads(
    (
        Download(
            "ADEChallengeData2016.zip",
            "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
            size=923 * 2**20,
            digest="sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
            digest_from=_DIGEST_FROM,
            page="http://sceneparsing.csail.mit.edu/",
        ),
        Download(
            "release_test.zip",
            "http://data.csail.mit.edu/places/ADEchallenge/release_test.zip",
            size=202 * 2**20,
            digest="sha1:e05747892219d10e9243933371a497e905a4860c",
            digest_from=_DIGEST_FROM,
            page="http://sceneparsing.csail.mit.edu/",
        ),
    )
)


class Dataset(_files.Files):
    """One split. Labels are -1 throughout `test`, whose ground truth only the test server has."""

    def __init__(self, root: Path, split: str) -> None:
        super().__init__(LAYOUT, root, split)


def problems(root: Path, splits: tuple[str, ...]) -> list[str]:
    """Why the splits cannot be used; empty if they can."""
    return _files.problems(LAYOUT, root, splits)


def originals(source: Path) -> Originals:
    """Find the images below ADEChallengeData2016, or in the folder that holds it."""
    base = _prepare.first_folder(source, ("images/training",), ("", "ADEChallengeData2016"), INFO.needs)
    splits: dict[str, list[Original]] = {}
    faults: list[str] = []
    notes: list[str] = []
    for split, folder in (("train", "training"), ("val", "validation")):
        images, masks = base / "images" / folder, base / "annotations" / folder
        notes += _prepare.hidden(images, masks)
        names = _prepare.stems(images, JPEGS)
        splits[split] = [
            Original(name, _prepare.existing(images, name, JPEGS), _prepare.existing(masks, name, PNGS))
            for name in names
        ]
        without_image = sorted(set(_prepare.stems(masks, PNGS)) - set(names))
        faults += [f"{images / name}.jpg: is missing, and {masks / name}.png has no image" for name in without_image]
    splits["trainval"] = splits["train"] + splits["val"]
    test = next((f for f in (base / "release_test", base.parent / "release_test") if f.is_dir()), None)
    if test is not None:
        try:
            listed, wrong = read_list(test / "list.txt")
        except Unreadable as error:
            raise LaureproError(str(error)) from None
        names = [name.removesuffix(".jpg") for name in listed]
        faults += wrong
        splits["test"] = [Original(name, _prepare.existing(test / "testing", name, JPEGS), None) for name in names]
    return Originals(splits, faults, tuple(notes))
