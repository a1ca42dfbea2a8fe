import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomseg.data.outlier_sources import MaskedObjects, RGBACutouts, SyntheticOutliers, TextureCrops, blob, check_sources
from anomseg.errors import SceneFormatError, SceneNotFoundError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def save_cutouts(folder, count=8, alpha=True):
    folder.mkdir(exist_ok=True)
    for number in range(count):
        pixels = np.full((12, 10, 4), 10 * number, np.uint8)
        pixels[..., 3] = 0
        pixels[3:9, 2:7, 3] = 255
        Image.fromarray(pixels if alpha else pixels[..., :3]).save(folder / f"c{number}.png")
    return str(folder)


def test_cutouts__are_cropped_to_what_is_seen(tmp_path):
    cutout = RGBACutouts(save_cutouts(tmp_path)).draw(seeded())
    assert cutout.shape == (4, 6, 5)
    assert bool((cutout[3] == 1).all())


def test_cutouts__split_into_parts_that_share_nothing(tmp_path):
    folder = save_cutouts(tmp_path)
    parts = [{path.stem for path in RGBACutouts(folder, part=part, val_every=3).files()} for part in ("train", "val", "test")]
    assert parts[2] == {"c0", "c4"}
    assert parts[1] == {"c1", "c5"}
    assert parts[0] == {"c2", "c3", "c6", "c7"}
    assert {path.stem for path in RGBACutouts(folder, part="train").files()} == parts[0] | parts[1]


def test_cutouts__leave_out_objects_of_known_classes(tmp_path):
    folder = save_cutouts(tmp_path, 4)
    rows = ["name,known_driving_class", "c0,1", "c1,0", "c2,0", "c3,1"]
    (tmp_path / "index.csv").write_text("\n".join(rows))
    assert [path.stem for path in RGBACutouts(folder, "index.csv").files()] == ["c1", "c2"]


def test_sources__pass_over_hidden_files_and_find_those_that_are_added(tmp_path):
    folder, seed = Path(save_cutouts(tmp_path / "cutouts", 2)), seeded()
    (folder / "._c0.png").write_bytes(b"no picture")
    for source in (RGBACutouts(str(folder)), TextureCrops(str(tmp_path), 8)):
        for _ in range(10):
            source.draw(seed)
    assert len(RGBACutouts(str(folder)).files()) == 2
    save_cutouts(folder, 3)
    os.utime(folder, (7, 7))
    assert len(RGBACutouts(str(folder)).files()) == 3


def test_annotations__are_read_as_utf_8_whatever_the_locale(tmp_path, monkeypatch):
    source = save_coco(tmp_path)
    content = json.loads(Path(source.annotations).read_text(encoding="utf-8"))
    content["categories"][0]["name"] = "Bär"
    Path(source.annotations).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    opened = []
    kept = Path.open

    def noted(path, *arguments, **options):
        opened.append((path.suffix, options.get("encoding", arguments[2] if len(arguments) > 2 else None)))
        return kept(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", noted)
    source.draw(seeded())
    save_cutouts(tmp_path, 1)
    (tmp_path / "index.csv").write_text("name,known_driving_class\nc0,0", encoding="utf-8")
    RGBACutouts(str(tmp_path), "index.csv").draw(seeded())
    assert {encoding for suffix, encoding in opened if suffix in (".json", ".csv")} == {"utf-8"}


def test_cutouts__without_alpha_are_refused_with_advice(tmp_path):
    with pytest.raises(SceneFormatError, match=r"alpha channel in '.*', but got 3 bands.*TextureCrops"):
        RGBACutouts(save_cutouts(tmp_path, alpha=False)).draw(seeded())


def test_cutouts__name_what_is_missing(tmp_path):
    with pytest.raises(SceneNotFoundError, match="folder of cut-outs"):
        RGBACutouts(str(tmp_path / "none")).files()
    with pytest.raises(SceneNotFoundError, match="all of them are missing"):
        RGBACutouts(str(tmp_path)).files()
    (tmp_path / "index.csv").write_text("name,known_driving_class\nghost,0")
    with pytest.raises(SceneNotFoundError, match="ghost"):
        RGBACutouts(str(tmp_path), "index.csv").files()


@pytest.mark.parametrize("wrong", [{"part": "half"}, {"every": 1}, {"val_every": 1}])
def test_cutouts__refuse_parts_that_cannot_be(wrong):
    with pytest.raises(ValueError, match="every >= 2"):
        RGBACutouts("x", **wrong)


def save_coco(folder):
    for name in ("zoo", "street"):
        Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(folder / f"{name}.png")
    polygon = [10, 5, 40, 5, 40, 30, 10, 30]
    content = {
        "images": [{"id": 1, "file_name": "zoo.png"}, {"id": 2, "file_name": "street.png"}],
        "categories": [{"id": 1, "name": "bear"}, {"id": 2, "name": "car"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "segmentation": [polygon], "area": 750},
            {"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 2, 0, 2, 2]], "area": 2},
            {"image_id": 1, "category_id": 1, "segmentation": {"counts": [], "size": []}, "area": 900, "iscrowd": 1},
            {"image_id": 2, "category_id": 1, "segmentation": [polygon], "area": 750},
            {"image_id": 2, "category_id": 2, "segmentation": [polygon], "area": 750},
        ],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return MaskedObjects(str(folder), str(folder / "instances.json"))


def test_masked_objects__come_from_images_without_known_classes(tmp_path):
    source = save_coco(tmp_path)
    for seed in range(6):
        cutout = source.draw(seeded(seed))
        assert cutout.shape == (4, 25, 30)
        assert bool((cutout[3] == 1).all())
    (tmp_path / "street.png").unlink()  # never opened
    source.draw(seeded(7))


@pytest.mark.parametrize("exclude", [("CAR",), (2,), ("car", 2)])
def test_masked_objects__exclude_categories_by_name_and_by_id(tmp_path, exclude):
    source = save_coco(tmp_path)
    (tmp_path / "street.png").unlink()
    for seed in range(6):
        MaskedObjects(source.images, source.annotations, exclude).draw(seeded(seed))


def test_masked_objects__know_the_names_of_lvis(tmp_path):
    source = save_coco(tmp_path)
    path = Path(source.annotations)
    path.write_text(path.read_text().replace('"car"', '"car_(automobile)"'))
    (tmp_path / "street.png").unlink()
    for seed in range(6):
        source.draw(seeded(seed))


@pytest.mark.parametrize("exclude", [("kar",), (7,), ("car", "cyclist")])
def test_masked_objects__refuse_to_exclude_what_is_not_there(tmp_path, exclude):
    source = save_coco(tmp_path)
    with pytest.raises(ValueError, match=rf"categories \[{exclude[-1]!r}\] of exclude= .*\(2, 'car'\).*exclude=\(\)"):
        MaskedObjects(source.images, source.annotations, exclude).draw(seeded())


def test_masked_objects__by_default_need_one_category_that_is_excluded(tmp_path):
    source = save_coco(tmp_path)
    path = Path(source.annotations)
    path.write_text(path.read_text().replace('"car"', '"zebra"'))
    with pytest.raises(ValueError, match="exclude="):
        source.draw(seeded())
    assert MaskedObjects(source.images, source.annotations, ()).draw(seeded()).shape == (4, 25, 30)


def test_masked_objects__leave_out_annotations_that_outline_nothing(tmp_path):
    source = save_coco(tmp_path)
    content = json.loads(Path(source.annotations).read_text())
    sound = [10, 5, 40, 5, 40, 30, 10, 30]
    outlines = ([], [[1, 1, 30, 30]], [[0, 0, 50, 0, 50]], [[10.1, 10.1, 10.3, 10.1, 10.3, 10.3]], None)
    content["annotations"] = [
        *({"image_id": 1, "category_id": 1, "segmentation": outline} for outline in outlines),
        *({"image_id": 1, "category_id": 1, "segmentation": outline, "area": 900} for outline in outlines[:3]),
        {"image_id": 1, "category_id": 1, "area": 900},
        {"image_id": 1, "category_id": 1, "segmentation": [sound, [1, 1, 2, 2]]},
    ]
    Path(source.annotations).write_text(json.dumps(content))
    for seed in range(8):
        assert source.draw(seeded(seed)).shape == (4, 25, 30)


def test_masked_objects__say_where_annotations_are_of_other_images_or_of_another_kind(tmp_path):
    source = save_coco(tmp_path)
    content = json.loads(Path(source.annotations).read_text())
    content["annotations"] = [{"image_id": 1, "category_id": 1, "segmentation": [[90, 90, 140, 90, 140, 140]], "area": 900}]
    (tmp_path / "beyond.json").write_text(json.dumps(content))
    with pytest.raises(SceneNotFoundError, match="show no pixel"):
        MaskedObjects(source.images, str(tmp_path / "beyond.json")).draw(seeded())
    (tmp_path / "other.json").write_text(json.dumps({"images": []}))
    with pytest.raises(SceneFormatError, match=r"'annotations' and 'categories' in .*, but got \['images'\]"):
        MaskedObjects(source.images, str(tmp_path / "other.json")).draw(seeded())


def test_masked_objects__of_masks_need_ids_and_masks_of_the_size_of_their_images(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    Image.fromarray(np.full((60, 60), 5, np.uint8)).save(tmp_path / "masks" / "m.png")
    Image.fromarray(np.zeros((50, 60, 3), np.uint8)).save(tmp_path / "images" / "m.png")
    folders = str(tmp_path / "images"), str(tmp_path / "masks")
    for arguments in ((), (("car",),), ((3, "car"),)):
        with pytest.raises(ValueError, match=r"ids in exclude= .*exclude=\(\)"):
            MaskedObjects(*folders, *arguments).draw(seeded())
    with pytest.raises(SceneFormatError, match=r"\(50, 60\) pixels in .*, but got \(60, 60\)"):
        MaskedObjects(*folders, ()).draw(seeded())


def test_masked_objects__come_from_masks_of_ids(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for number, (known, other) in enumerate(((0, 254), (3, 254), (0, 5))):
        ids = np.zeros((40, 50), np.uint8)
        ids[5:15, 5:15], ids[20:30, 10:30], ids[:3] = known, other, 255
        Image.fromarray(ids).save(tmp_path / "masks" / f"m{number}.png")
        Image.fromarray(np.full((40, 50, 3), 50 * number, np.uint8)).save(tmp_path / "images" / f"m{number}.jpg")
    source = MaskedObjects(str(tmp_path / "images"), str(tmp_path / "masks"), exclude=(3,), least=150)
    drawn = [source.draw(seeded(seed)) for seed in range(20)]
    assert {tuple(cutout.shape) for cutout in drawn} == {(4, 10, 20)}
    assert {round(float(cutout[0].mean()) * 255) for cutout in drawn} == {0, 100}
    with pytest.raises(SceneNotFoundError, match="3 of them show none"):
        MaskedObjects(source.images, source.annotations, exclude=(3,), least=900).draw(seeded())
    with pytest.raises(SceneNotFoundError, match="named as the images"):
        MaskedObjects(str(tmp_path / "images"), str(tmp_path / "images"), exclude=()).draw(seeded())


def test_masked_objects__say_where_nothing_is_left(tmp_path):
    source = save_coco(tmp_path)
    with pytest.raises(SceneNotFoundError, match="there is none"):
        MaskedObjects(source.images, source.annotations, exclude=("bear",)).draw(seeded())
    with pytest.raises(SceneNotFoundError, match="no such file"):
        MaskedObjects(source.images, str(tmp_path / "none.json")).draw(seeded())


def test_textures__fill_shapes_with_crops_of_images_of_any_size(tmp_path):
    for number, size in enumerate(((30, 200), (64, 64))):
        (tmp_path / "deep").mkdir(exist_ok=True)
        checks = 100 + 40 * (np.indices(size).sum(0) // 2 % 2)
        Image.fromarray(checks.astype(np.uint8)).save(tmp_path / "deep" / f"{number}.png")
    source = TextureCrops(str(tmp_path), side=48)
    sides = set()
    for seed in range(12):
        shape = source.draw(seeded(seed))
        sides.add(shape.shape[-1])
        assert shape.shape[-1] == shape.shape[-2]
        assert set((shape[:3] * 255).round().unique().tolist()) == {100.0, 140.0}
        assert set(shape[3].unique().tolist()) <= {0.0, 1.0}
    assert sides == {30, 48}
    with pytest.raises(SceneNotFoundError, match="SyntheticOutliers"):
        TextureCrops(str(tmp_path / "none")).draw(seeded())


def test_textures__are_seldom_without_texture(tmp_path):
    for number, noise in enumerate((0, 0, 0, 60)):
        pixels = np.random.default_rng(0).integers(0, noise + 1, (64, 64)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    drawn = [float(TextureCrops(str(tmp_path), 32).draw(seeded(seed))[:3].std()) for seed in range(40)]
    assert sum(value > 0 for value in drawn) >= 32  # nine in ten of eight draws


def test_blob__is_seen_and_differs_from_draw_to_draw():
    blobs = torch.stack([blob(seeded(seed)) for seed in range(40)])
    shares = blobs.mean((1, 2))
    assert float(shares.min()) > 0.05
    assert float(shares.max()) < 0.95
    assert float((blobs[0] != blobs[1]).float().mean()) > 0.02
    assert float(blobs[:, 0, 0].mean()) < 0.1  # corners are seldom part of a shape


@pytest.mark.parametrize("seed", range(8))
def test_synthetic_outliers__are_decided_by_the_generator(seed):
    first, again, other = (SyntheticOutliers().draw(seeded(s)) for s in (seed, seed, seed + 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (4, 64, 64)
    assert 0 <= float(first.min()) <= float(first.max()) <= 1


def test_check_sources__says_how_to_give_one():
    with pytest.raises(ValueError, match=r"RGBACutouts\(folder\).*SyntheticOutliers\(\)"):
        check_sources(())


@pytest.mark.real
@pytest.mark.skipif("ANOMSEG_DATA" not in os.environ, reason="ANOMSEG_DATA names no folder of real scenes")
def test_cutouts__of_real_objects_keep_18_to_train_and_7_to_test():
    folder = str(Path(os.environ["ANOMSEG_DATA"]) / "outliers")
    train, test = ({path.stem for path in RGBACutouts(folder, "index.csv", part).files()} for part in ("train", "test"))
    assert (len(train), len(test), len(train & test)) == (18, 7, 0)
    assert not any("person" in name or "car" in name for name in train | test)
    for seed in range(10):
        cutout = RGBACutouts(folder, "index.csv").draw(seeded(seed))
        assert float((cutout[3] > 0.5).float().mean()) > 0.1
