import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from anomseg.data.group_split import GroupSplit
from anomseg.data.image_split import NameSplit, ShareSplit
from anomseg.data.industrial_layouts import IndustrialLayout, industrial_layout_of
from anomseg.data.industrial_patches import PatchRule
from anomseg.data.industrial_sets import IndustrialSet, predicted_images, shared_set
from anomseg.data.industrial_split import SessionSplit
from anomseg.errors import SceneNotFoundError

TILES = SessionSplit(r"num_(\d+)")


def save(path, marked=None, size=(24, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full(size, 90, np.uint8)
    if marked is not None:
        array[:] = 0
        array[4 : 4 + marked, 6:9] = 255
    Image.fromarray(array).save(path)


def mvtec(root, category="nut", train=10):
    for number in range(train):
        save(root / category / "train/good" / f"{number:03d}.png")
    for number in range(4):
        save(root / category / "test/good" / f"{number:03d}.png")
        save(root / category / "test/hole" / f"{number:03d}.png")
        save(root / category / "ground_truth/hole" / f"{number:03d}_mask.png", 5)
    return root


def tiles(root, sessions=12):
    for session in range(sessions):
        for shot in range(3):
            name = f"exp{shot}_num_{5000 * session + 300 * shot}"
            save(root / "MT_Free/Imgs" / f"{name}.jpg")
            save(root / "MT_Crack/Imgs" / f"{name.replace('exp', 'expx')}.jpg")
            save(root / "MT_Crack/Imgs" / f"{name.replace('exp', 'expx')}.png", 5)
    return root


def kinds(images):
    return [image.file.defect for image in images]


def session(image):
    return int(re.search(r"num_(\d+)", image.name)[1]) // 5000


def test_shared_set__follows_the_folders_and_validates_on_training_images(tmp_path):
    parts = shared_set(IndustrialSet(mvtec(tmp_path)), val_share=0.3)
    assert [len(parts[part]) for part in ("train", "val", "test")] == [7, 3, 8]
    assert {image.file.part for part in ("train", "val") for image in parts[part]} == {"train"}
    assert kinds(parts["test"]).count("hole") == 4
    names = [image.name for part in parts.values() for image in part]
    assert len(set(names)) == len(names)
    other = shared_set(IndustrialSet(tmp_path), val_share=0.3, seed=1)
    assert {image.name for image in other["val"]} != {image.name for image in parts["val"]}


def test_shared_set__validates_on_each_category(tmp_path):
    mvtec(tmp_path, "nut"), mvtec(tmp_path, "pill", train=30)
    parts = shared_set(IndustrialSet(tmp_path), val_share=0.1)
    assert sorted(image.file.category for image in parts["val"]) == ["nut", "pill", "pill", "pill"]


def test_shared_set__never_validates_on_the_only_training_image(tmp_path):
    parts = shared_set(IndustrialSet(mvtec(tmp_path, train=1)), val_share=0.5)
    assert (len(parts["train"]), len(parts["val"])) == (1, 0)


def test_shared_set__tests_every_defect_whatever_its_session(tmp_path):
    parts = shared_set(IndustrialSet(tiles(tmp_path), "magnetic_tile"))
    assert kinds(parts["test"]).count("Crack") == 36
    assert set(kinds(parts["train"]) + kinds(parts["val"])) == {"good"}
    held = [{session(image) for image in parts[part] if image.file.defect == "good"} for part in ("train", "val", "test")]
    assert not held[0] & held[1]
    assert not (held[0] | held[1]) & held[2]
    assert sum(map(len, held)) == 12


def test_shared_set__keeps_defects_of_training_sessions_out_of_the_test_where_asked(tmp_path):
    parts = shared_set(IndustrialSet(tiles(tmp_path), "magnetic_tile", split=TILES, test_defects="split"))
    trained = {session(image) for part in ("train", "val") for image in parts[part]}
    tested = {session(image) for image in parts["test"]}
    assert not trained & tested
    assert 0 < kinds(parts["test"]).count("Crack") < 36


@pytest.mark.parametrize(
    "split",
    [
        ShareSplit(0.5, 0.25, 0.25),
        GroupSplit(r"num_(\d+)$", test=("0", "300"), val=("600",)),
        NameSplit(("magnetic_tile/good/exp0_num_0",), test=("magnetic_tile/good/exp1_num_300",)),
    ],
)
def test_shared_set__takes_every_kind_of_split(tmp_path, split):
    parts = shared_set(IndustrialSet(tiles(tmp_path, 4), "magnetic_tile", split=split), val_share=0)
    good = {part: {image.name for image in parts[part] if image.file.defect == "good"} for part in parts}
    names = sorted({name for names in good.values() for name in names})
    if not isinstance(split, NameSplit):
        assert [good[part] for part in ("train", "val", "test")] == [set(part) for part in split.share(names, 0)]
    else:
        assert (len(good["train"]), len(good["val"]), len(good["test"])) == (1, 0, 1)


def cracks(root, count=10):
    for number in range(count):
        save(root / "image" / f"{number:03d}.jpg", size=(48, 64))
        save(root / "mask" / f"{number:03d}.png", 40 if number else 0, size=(48, 64))
    return root


def test_patches__are_split_by_their_images_and_trained_on_where_normal(tmp_path):
    rule = PatchRule(16, 16, margin=2, min_pixels=9)
    parts = shared_set(IndustrialSet(cracks(tmp_path), "crackforest", patches=rule))
    held = [{image.file.stem for image in parts[part]} for part in ("train", "val", "test")]
    assert sum(map(len, held)) == len(set.union(*held)) == 10
    assert set(kinds(parts["train"]) + kinds(parts["val"])) == {"good"}
    assert set(kinds(parts["test"])) == {"good", "crack"}
    for image in parts["test"]:
        marked = int((image.truth() == 1).sum())
        assert marked >= 9 if image.file.defect == "crack" else marked == 0
    assert len({image.name for part in parts.values() for image in part}) == sum(map(len, parts.values()))


def test_masks__say_what_is_normal_where_folders_do_not(tmp_path):
    layout = replace(industrial_layout_of("crackforest"), patches=None)
    parts = shared_set(IndustrialSet(cracks(tmp_path), layout, split=NameSplit(("crackforest/good/000",))), val_share=0)
    assert kinds(parts["train"]) == ["good"]
    assert kinds(parts["test"]) == ["crack"] * 9


def test_shared_set__says_how_many_defects_have_no_mask_and_how_many_an_empty_one(tmp_path):
    mvtec(tmp_path)
    (tmp_path / "nut/ground_truth/hole/000_mask.png").unlink()
    with pytest.warns(UserWarning, match=r"1 of 4 defective images have no mask, such as \['nut/hole/000'\].*image labels do count"):
        shared_set(IndustrialSet(tmp_path))
    save(tmp_path / "nut/ground_truth/hole/000_mask.png", 0)
    with pytest.warns(UserWarning, match="1 of 4 defective images have a mask that marks nothing"):
        parts = shared_set(IndustrialSet(tmp_path))
    assert [bool((image.truth() == 255).all()) for image in parts["test"] if image.file.defect == "hole"] == [True, False, False, False]


def test_shared_set__says_that_there_is_nothing_normal(tmp_path):
    save(tmp_path / "hole/0.png")
    with pytest.raises(SceneNotFoundError, match=r"images are of \['hole'\]"):
        shared_set(IndustrialSet(tmp_path, "folders"))


def test_predicted_images__are_of_a_data_set_or_of_a_plain_folder(tmp_path):
    known = predicted_images(mvtec(tmp_path / "set"), industrial_layout_of("mvtec"), "nut")
    assert len(known) == 18
    save(tmp_path / "new/a.png"), save(tmp_path / "new/b.jpg")
    unknown = predicted_images(tmp_path / "new", industrial_layout_of("mvtec"), "nut")
    assert [(image.name, image.image_label, image().mask) for image in unknown] == [
        ("nut/unknown/a", 255, None),
        ("nut/unknown/b", 255, None),
    ]
    with pytest.raises(SceneNotFoundError, match="holds new, set"):
        predicted_images(tmp_path, IndustrialLayout("{defect}/{name}.x"), "nut")


def test_predicted_images__are_no_hidden_files(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"Mac OS X")
    (tmp_path / "b.png").mkdir()
    found = predicted_images(tmp_path, industrial_layout_of("mvtec"), "nut")
    assert [image.file.path.name for image in found] == ["a.png"]


def test_set__refuses_unknown_words():
    with pytest.raises(ValueError, match="test_defects"):
        IndustrialSet(".", test_defects="some")
    with pytest.raises(ValueError, match="layout"):
        IndustrialSet(".", layout="visa")
    with pytest.raises(ValueError, match=r"\['nut'\]"):
        IndustrialSet(".", categories="nut")


def test_set__takes_its_size_as_a_list(tmp_path):
    parts = shared_set(IndustrialSet(mvtec(tmp_path), size=[8, 6]))
    assert {image.scaled for part in parts.values() for image in part} == {(8, 6)}


def test_patches__of_images_without_truth_are_left_out_and_said(tmp_path):
    cracks(tmp_path)
    (tmp_path / "mask/003.png").unlink()
    with pytest.warns(UserWarning, match=r"1 of 10 images have no truth to cut patches by.*003\.jpg"):
        parts = shared_set(IndustrialSet(tmp_path, "crackforest", patches=PatchRule(16, 16, margin=2, min_pixels=9)))
    assert "003" not in {image.file.stem for part in parts.values() for image in part}


def test_patches__that_validate_are_of_other_images_than_those_that_train(tmp_path):
    rule = PatchRule(16, 8, margin=2, min_pixels=9)
    parts = shared_set(IndustrialSet(cracks(tmp_path), "crackforest", patches=rule, split=ShareSplit(0.7, 0.0, 0.3)), val_share=0.3)
    trained, validated = ({image.file.stem for image in parts[part]} for part in ("train", "val"))
    assert len(validated) >= 1
    assert not trained & validated
    assert len(trained | validated) == 7


@pytest.mark.parametrize("split", [SessionSplit(r"num_(\d+)", train=0.6, val=0.0, test=0.4), GroupSplit(r"num_(\d+)000", test=("5", "10"))])
def test_sessions_and_groups__that_validate_are_others_than_those_that_train(tmp_path, split):
    for number in range(12):
        for shot in range(3):
            save(tmp_path / "good" / f"exp{shot}_num_{5000 * number + 1000}.png")
    parts = shared_set(IndustrialSet(tmp_path, "folders", split=replace(split, test=("1",)) if isinstance(split, GroupSplit) else split))
    trained, validated = ({session(image) for image in parts[part]} for part in ("train", "val"))
    assert len(validated) == 1
    assert not trained & validated
    assert len(parts["val"]) == 3


def test_sessions__of_defective_images_join_those_of_normal_ones(tmp_path):
    for session in range(4):
        for step in range(9):  # the normal images of a session lie farther apart than its gap
            save(tmp_path / ("good" if step % 4 == 0 else "hole") / f"num_{20000 * session + 900 * step}.png")
    split = SessionSplit(r"num_(\d+)", train=0.75, val=0.0, test=0.25)
    with pytest.warns(UserWarning, match="have no mask"):
        parts = shared_set(IndustrialSet(tmp_path, "folders", split=split, test_defects="split"))
    held = [{int(image.file.stem[4:]) // 20000 for image in parts[part]} for part in ("train", "val", "test")]
    assert [len(one) for one in held] == [2, 1, 1]
    assert len(set.union(*held)) == 4


def test_set__refuses_to_split_by_blocks(tmp_path):
    with pytest.raises(ValueError, match="draws blocks"):
        IndustrialSet(tmp_path, split=ShareSplit(block=64))


def test_shared_set__of_one_image_gives_advice_that_works(tmp_path):
    save(tmp_path / "good/a.png")
    with pytest.raises(ValueError, match=r"at least 3 images to share out, but got 1"):
        shared_set(IndustrialSet(tmp_path, "folders"))
    name = f"{tmp_path.name}/good/a"
    assert len(shared_set(IndustrialSet(tmp_path, "folders", split=NameSplit((name,))))["train"]) == 1
