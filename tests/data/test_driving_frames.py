import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from anomseg.data.class_rule import ClassAsNormal
from anomseg.data.driving_frames import DrivingFrame, DrivingTruth, PastedFrame
from anomseg.data.driving_layouts import CAMVID, DRIVING_LAYOUTS
from anomseg.data.image_parts import unlabelled_images
from anomseg.data.outlier_paste import OutlierPaste
from anomseg.data.outlier_sources import SyntheticOutliers
from anomseg.errors import SceneFormatError

CAMVID_LAYOUT = DRIVING_LAYOUTS["camvid"]
IDS = torch.tensor([[0, 3, 9], [10, 11, -1]])


def save(root, size=(20, 30), name="a", values=None):
    rng = np.random.default_rng(0)
    (root / "train").mkdir(exist_ok=True)
    (root / "trainannot").mkdir(exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / "train" / f"{name}.png")
    ids = np.repeat(np.repeat(rng.integers(0, 12, (5, 6)), 4, 0), 5, 1) if values is None else np.full(size, values)
    Image.fromarray(ids.astype(np.uint8)).save(root / "trainannot" / f"{name}.png")


def frame(root, truth=None, size=None):
    (image,) = unlabelled_images(root, CAMVID_LAYOUT.folders, ClassAsNormal(("sky",)))
    return DrivingFrame(image, truth or DrivingTruth(CAMVID_LAYOUT), size)


def test_truth__numbers_the_known_classes_anew_without_those_held_out():
    truth = DrivingTruth(CAMVID_LAYOUT, ("road", "pedestrian"), anomalous=True)
    mask, label = truth.read(IDS)
    assert truth.known == tuple(name for name in CAMVID if name not in ("road", "pedestrian"))
    assert mask.tolist() == [[0, 1, 1], [0, 255, 255]]
    assert label.tolist() == [[0, 255, 255], [8, 255, 255]]


def test_truth__hides_held_out_classes_from_training_even_where_void_is_an_outlier():
    mask, label = DrivingTruth(CAMVID_LAYOUT, ("bicyclist",), anomalous=False, void=1).read(IDS)
    assert mask.tolist() == [[0, 0, 0], [255, 1, 1]]
    assert label.tolist() == [[0, 3, 9], [255, 255, 255]]


def test_truth__keeps_the_rim_of_void_void_but_not_the_edge_of_the_frame():
    ids = torch.full((7, 9), 11)
    ids[:, 0], ids[3, 8] = 3, 10  # a class that is learnt, and one that is held out
    truth = DrivingTruth(CAMVID_LAYOUT, ("bicyclist",), void=1, rim=2)
    mask, label = truth.read(ids)
    seams = torch.zeros(7, 9, dtype=torch.bool)
    seams[:, :3], seams[1:6, 6:] = True, True
    assert bool((mask[~seams] == 1).all())
    assert set(mask[seams].tolist()) == {0, 255}
    assert torch.equal(mask == 0, ids == 3)
    assert torch.equal(label, torch.where(ids == 3, 3, 255))
    unseen = DrivingTruth(CAMVID_LAYOUT, ("bicyclist",), rim=2).read(ids)[0]
    assert torch.equal(unseen == 255, ids != 3)


def test_frame__is_read_in_zero_to_one_with_label_and_mask(tmp_path):
    save(tmp_path)
    scene = frame(tmp_path)()
    stored = np.array(Image.open(tmp_path / "train" / "a.png")).transpose(2, 0, 1)
    ids = torch.from_numpy(np.array(Image.open(tmp_path / "trainannot" / "a.png"))).long()
    assert torch.equal(scene.image, torch.from_numpy(stored).float() / 255)
    assert torch.equal(scene.label, ids.masked_fill(ids == 11, 255))
    assert torch.equal(scene.mask, torch.where(ids == 11, 255, 0))


def test_frame__of_another_size_keeps_its_ids_and_its_mean(tmp_path):
    save(tmp_path)
    small, full = frame(tmp_path, size=(10, 15)), frame(tmp_path)
    assert small.facts().size == (10, 15)
    assert full.facts().size == (20, 30)
    scene = small()
    assert scene.image.shape == (3, 10, 15)
    assert float(scene.image.mean()) == pytest.approx(float(full().image.mean()), abs=0.02)
    assert torch.equal(scene.label, full().label[1::2, 1::2])  # blocks of ids are larger than a pixel
    assert set(scene.label.unique().tolist()) <= {*range(11), 255}


@pytest.mark.parametrize("size", [None, (10, 15)])
def test_frame__of_16_bits_is_in_zero_to_one_too(tmp_path, size):
    save(tmp_path)
    stored = np.random.default_rng(1).integers(0, 65536, (3, 20, 30), dtype=np.uint16)
    with rasterio.open(tmp_path / "train" / "a.png", "w", driver="PNG", count=3, height=20, width=30, dtype="uint16") as file:
        file.write(stored)
    image = frame(tmp_path, size=size)().image
    assert 0 <= float(image.min()) < float(image.max()) <= 1
    assert float(image.mean()) == pytest.approx(stored.mean() / 65535, abs=0.02)
    if size is None:
        torch.testing.assert_close(image, torch.from_numpy(stored.astype(np.float32) / 65535))


def test_frame__reads_alike_before_and_after_it_is_measured(tmp_path):
    save(tmp_path)
    fresh, measured = frame(tmp_path), frame(tmp_path).measured()
    assert (fresh.largest, measured.largest) == (None, 255.0)
    assert torch.equal(fresh().image, measured().image)


def test_frame__is_scaled_without_what_is_not_there(tmp_path):
    (tmp_path / "train").mkdir()
    with rasterio.open(tmp_path / "train" / "a.png", "w", driver="PNG", count=3, height=20, width=30, dtype="uint8", nodata=0) as file:
        file.write(np.where(np.arange(30) < 13, 0, 100).astype(np.uint8) * np.ones((3, 20, 1), np.uint8))
    image = frame(tmp_path, size=(10, 15))().image
    lost = torch.isnan(image)
    assert bool(lost[..., :6].all())
    assert not bool(lost[..., 7:].any())
    torch.testing.assert_close(image[~lost], torch.full_like(image[~lost], 100 / 255))


def test_frame__is_refused_where_a_viewer_shows_something_else(tmp_path):
    save(tmp_path)
    path = tmp_path / "train" / "a.png"
    picture = Image.open(path).convert("RGB")
    picture.quantize(16).save(path)
    with pytest.raises(SceneFormatError, match=r"a\.png.*palette"):
        frame(tmp_path).measured()


def test_frame__names_ids_that_the_table_does_not_know(tmp_path):
    save(tmp_path, values=77)
    with pytest.raises(SceneFormatError, match=r"a\.png.*\[77\]"):
        frame(tmp_path)()


def test_frame__of_void_pixels_alone_counts_nowhere(tmp_path):
    save(tmp_path, values=11)
    scene = frame(tmp_path)()
    assert bool((scene.mask == 255).all())
    assert bool((scene.label == 255).all())


def test_frame__knows_whether_it_counts_and_teaches(tmp_path):
    for values, counts, learnt in ((11, False, False), ((11, 3), True, True), ((11, 10), True, False)):
        save(tmp_path, values=np.resize(values, (20, 30)))
        held = frame(tmp_path, DrivingTruth(CAMVID_LAYOUT, ("bicyclist",), True))
        assert (held.counts(), held.counts(learnt=True)) == (counts, learnt)


def test_pasted_frame__always_holds_the_same_objects(tmp_path):
    save(tmp_path, (60, 80), values=3)
    paste = OutlierPaste((SyntheticOutliers(),), 1.0, size=(0.3, 0.5))
    first, again, other = (PastedFrame(frame(tmp_path), paste, seed)() for seed in (0, 0, 1))
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.mask, other.mask)
    assert torch.equal(first.mask == 1, first.label == 255)
    assert bool((first.mask == 1).any())
    assert PastedFrame(frame(tmp_path), paste).facts() == frame(tmp_path).facts()
