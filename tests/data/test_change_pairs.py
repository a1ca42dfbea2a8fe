import os
import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

from anomseg.data.change_folders import PairFiles
from anomseg.data.change_pairs import ChangePair, PairReading
from anomseg.data.pair_transform import Binarise, GlobalShift
from anomseg.data.scene_dataset import KnownTruth, PartialScene, SceneDataset
from anomseg.errors import SceneFormatError, SceneNotFoundError

CRS = rasterio.crs.CRS.from_epsg(32633).to_wkt()


def save(path, array, left=None, top=5000000.0, crs=CRS, **profile):
    height, width = array.shape[1:]
    place = {} if left is None else {"transform": rasterio.Affine(10, 0, left, 0, -10, top), "crs": crs}
    options = {"driver": "GTiff", "count": len(array), "height": height, "width": width, "dtype": array.dtype, **place, **profile}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **options) as file:
            file.write(array)
    return path


def values(seed, bands=2, size=(20, 24), dtype=np.uint8):
    return np.random.default_rng(seed).integers(1, 255, (bands, *size)).astype(dtype)


def pair(before, after, mask=None, **reading):
    return ChangePair(PairFiles("p", (before,), (after,), mask), PairReading(**reading)).measured()


@pytest.fixture
def placed(tmp_path):
    """Two dates, the second two rows lower and three columns further right, and a mask on the pixels of the first."""
    truth = (values(3, 1) > 200).astype(np.uint8)
    before = save(tmp_path / "b.tif", values(0), 500000.0)
    after = save(tmp_path / "a.tif", values(1), 500030.0, 4999980.0)
    return before, after, save(tmp_path / "m.tif", truth, 500000.0), truth


def test_change_pair__stacks_both_dates(tmp_path):
    before, after = save(tmp_path / "b.tif", values(0)), save(tmp_path / "a.tif", values(1))
    scene = pair(before, after)()
    assert scene.image.dtype == torch.float32
    np.testing.assert_array_equal(scene.image.numpy(), np.stack([values(0), values(1)]))
    assert (scene.name, scene.mask, scene.transform) == ("p", None, None)


def test_change_pair__aligns_dates_of_different_extents(placed):
    before, after, mask, truth = placed
    scene = pair(before, after, mask)()
    assert scene.image.shape == (2, 2, 18, 21)
    np.testing.assert_array_equal(scene.image[0].numpy(), values(0)[:, 2:, 3:])
    np.testing.assert_allclose(scene.image[1].numpy(), values(1)[:, :18, :21], atol=1e-3)
    np.testing.assert_array_equal(scene.mask.numpy(), truth[0, 2:, 3:])
    assert scene.transform == (10.0, 0.0, 500030.0, 0.0, -10.0, 4999980.0)
    assert rasterio.crs.CRS.from_wkt(scene.crs).to_epsg() == 32633


def test_change_pair__aligns_dates_of_different_coordinate_systems(tmp_path, placed):
    xs, ys = rasterio.warp.transform(CRS, "EPSG:32632", [499900.0], [5000150.0])
    other = save(tmp_path / "o.tif", np.full((2, 60, 60), 7, np.uint8), xs[0], ys[0], "EPSG:32632")
    scene = pair(placed[0], other)()
    assert scene.image.shape == (2, 2, 20, 24)
    assert bool((scene.image[1] == 7).all())


def test_change_pair__marks_what_one_date_lacks_at_both(tmp_path):
    hole = values(0)
    hole[1, 4:6, 5:9] = 0
    before, after = save(tmp_path / "b.tif", hole, nodata=0), save(tmp_path / "a.tif", values(1))
    mask = save(tmp_path / "m.tif", np.zeros((1, 20, 24), np.uint8))
    scene = pair(before, after, mask)()
    lost = torch.isnan(scene.image)
    assert bool((lost == lost[0, 0]).all())
    assert torch.equal(lost[0, 0], scene.mask == 255)
    assert lost[0, 0].nonzero().tolist() == [[r, c] for r in (4, 5) for c in (5, 6, 7, 8)]


@pytest.mark.parametrize("prepare", [(), (Binarise(100.0), GlobalShift(3))])
def test_change_pair__reads_a_part_as_the_whole(placed, prepare):
    before, after, mask, _ = placed
    loader = pair(before, after, mask, prepare=prepare)
    whole, part = loader(), loader.part((3, 4, 9, 8))
    torch.testing.assert_close(part.image, whole.image[..., 3:12, 4:12], atol=1e-3, rtol=0)
    assert torch.equal(part.mask, whole.mask[3:12, 4:12])
    assert part.transform == whole.transform
    assert torch.equal(loader.truth(), whole.mask)


def test_change_pair__is_cut_into_blocks_that_know_their_place(placed):
    before, after, mask, _ = placed
    whole = pair(before, after, mask)
    block = whole.block((5, 6, 10, 11))
    scene = block()
    torch.testing.assert_close(scene.image, whole().image[..., 5:15, 6:17], atol=1e-3, rtol=0)
    assert scene.transform == (10.0, 0.0, 500090.0, 0.0, -10.0, 4999930.0)
    assert (block.name, block.size) == ("p_r00005_c00006", (10, 11))
    torch.testing.assert_close(block.part((1, 2, 3, 4)).image, scene.image[..., 1:4, 2:6], atol=1e-3, rtol=0)
    assert block.part((1, 2, 3, 4)).transform == scene.transform


def test_change_pair__keeps_bands_and_scales_them(tmp_path):
    before, after = save(tmp_path / "b.tif", values(0, 3)), save(tmp_path / "a.tif", values(1, 4, dtype=np.uint16) * 257)
    scene = pair(before, after, bands=(2, 0), scale=(257.0, 1.0))()
    expected = np.stack([values(0, 3)[[2, 0]] * 257.0, values(1, 4)[[2, 0]] * 257.0])
    np.testing.assert_allclose(scene.image.numpy(), expected)
    with pytest.raises(ValueError, match="0 to 2"):
        pair(before, after, bands=(3,), scale=(1.0, 1.0))()


def test_change_pair__joins_band_files(tmp_path):
    paths = [save(tmp_path / f"{name}.tif", values(seed, 1)) for seed, name in enumerate("abcd")]
    scene = ChangePair(PairFiles("p", tuple(paths[:2]), tuple(paths[2:]))).measured()()
    np.testing.assert_array_equal(scene.image.numpy(), np.concatenate([values(seed, 1) for seed in range(4)]).reshape(2, 2, 20, 24))


def test_change_pair__knows_size_and_memory_before_it_is_read(placed):
    loader = pickle.loads(pickle.dumps(pair(*placed[:3])))
    assert isinstance(loader, PartialScene)
    assert isinstance(loader, KnownTruth)
    assert (loader.size, loader.nbytes, loader.facts().has_truth) == ((18, 21), loader().image.nbytes, True)
    assert loader.found() == (True, True)


def test_change_pair__says_what_does_not_fit(tmp_path, placed):
    before, after, _, _ = placed
    small = save(tmp_path / "s.tif", values(0, size=(20, 20)))
    with pytest.raises(ValueError, match=r"20 x 24 pixels in .* but got 20 x 20.*georeference"):
        pair(before, small)
    far = save(tmp_path / "f.tif", values(0), 900000.0)
    with pytest.raises(ValueError, match="share no pixel"):
        pair(before, far)
    with pytest.raises(ValueError, match=r"has 2 and '.*' has 3"):
        pair(before, save(tmp_path / "n.tif", values(0, 3)))
    with pytest.raises(ValueError, match=r"stored as uint8 and .* as uint16.*scale="):
        pair(before, save(tmp_path / "w.tif", values(0, dtype=np.uint16)))
    with pytest.raises(SceneNotFoundError, match="Expected a raster"):
        pair(before, tmp_path / "gone.tif")
    with pytest.raises(SceneNotFoundError, match="Expected a mask of the pair 'p'"):
        pair(before, after).truth()
    with pytest.raises(ValueError, match=r"at both dates of 'p', but '.*e\.tif' has none"):
        pair(before, save(tmp_path / "e.tif", np.zeros((2, 20, 24), np.uint8), nodata=0))()
    with pytest.raises(SceneFormatError, match=r"got 4: \[0, 1, 2, 3\]"):
        pair(before, after, save(tmp_path / "k.tif", np.arange(480, dtype=np.uint8).reshape(1, 20, 24) % 4))


needs_data = pytest.mark.skipif("ANOMSEG_DATA" not in os.environ, reason="ANOMSEG_DATA names no folder of real scenes")


@pytest.mark.real
@needs_data
def test_change_pair__aligns_the_real_orthophotos():
    folder = Path(os.environ["ANOMSEG_DATA"]) / "geo" / "naip"
    scene = pair(folder / "m_4709963_se_14_1_20090818.tif", folder / "m_4709963_se_14_1_20120731.tif")()
    assert scene.image.shape == (2, 4, 722, 934)
    assert bool(torch.isfinite(scene.image).all())
    assert scene.transform == (5.0, 0.0, 485900.0, 0.0, -5.0, 5209242.0)


@pytest.mark.real
@needs_data
def test_change_pair__reads_the_sampled_truth_of_taizhou():
    folder = Path(os.environ["ANOMSEG_DATA"]) / "change" / "landsat" / "Taizhou"
    files = PairFiles("taizhou", ("2000TM",), ("2003TM",), changed="change.bmp", unchanged="unchanged.bmp").below(folder)
    scene = ChangePair(files).measured()()
    assert scene.image.shape == (2, 6, 400, 400)
    assert [int((scene.mask == value).sum()) for value in (0, 1, 255)] == [17163, 4227, 138610]
    assert scene.wavelength == pytest.approx((482.5, 565.0, 660.0, 825.0, 1650.0, 2220.0))


@pytest.mark.real
@needs_data
def test_change_pair__finds_the_shift_of_a_real_board():
    folder = Path(os.environ["ANOMSEG_DATA"]) / "change" / "deeppcb"
    name = "13000015"
    files = PairFiles(name, (folder / f"template/{name}.jpg",), (folder / f"test/{name}.jpg",), folder / f"mask/{name}.png")
    raw, moved = (ChangePair(files, PairReading((0,), None, steps)).measured()() for steps in ((Binarise(),), (Binarise(), GlobalShift())))
    differ = [(scene.image[0] != scene.image[1])[0] for scene in (raw, moved)]
    assert bool(differ[0][raw.mask == 1].all())  # the truth are differing pixels inside of boxes
    assert int(differ[1].sum()) < 0.35 * int(differ[0].sum())


def test_pair__of_one_size_at_two_places_without_a_coordinate_system_is_refused(tmp_path):
    before = save(tmp_path / "b.tif", values(0), 500000.0, crs=None)
    for crs in (None, CRS):
        after = save(tmp_path / "a.tif", values(1), 500100.0, crs=crs)
        with pytest.raises(ValueError, match=r"a\.tif' on the pixels of .*b\.tif', but their transforms differ .*CRS"):
            pair(before, after)
    same = pair(before, save(tmp_path / "a.tif", values(1), 500000.0, crs=CRS))
    assert same.size == (20, 24)
    mask = save(tmp_path / "m.tif", values(2, bands=1) % 2, 500100.0, crs=None)
    with pytest.raises(ValueError, match=r"m\.tif' on the pixels of"):
        pair(before, tmp_path / "a.tif", mask)


def test_pair__of_palette_pictures_is_refused(tmp_path):
    paths = [tmp_path / "b.png", tmp_path / "a.png"]
    for seed, path in enumerate(paths):
        Image.fromarray(values(seed, bands=3).transpose(1, 2, 0)).quantize(16).save(path)
    with pytest.raises(SceneFormatError, match="palette"):
        pair(*paths)


def test_block__is_prepared_as_the_whole_pair(tmp_path):
    ground = np.random.default_rng(0).integers(0, 255, (1, 80, 80)).astype(np.uint8)
    ground[:, 40:, 40:] = 100  # a block that tells no shift
    before, after = (
        save(tmp_path / f"{name}.tif", plane, 500000.0) for name, plane in (("b", ground), ("a", np.roll(ground, (2, 3), (1, 2))))
    )
    whole = pair(before, after, prepare=(GlobalShift(6),))
    image, scene = whole().image, whole.block((40, 40, 40, 40))()
    assert torch.equal(scene.image, image[..., 40:, 40:])
    assert scene.transform == (10.0, 0.0, 500400.0, 0.0, -10.0, 4999600.0)
    part = whole.block((40, 40, 40, 40)).part((5, 6, 20, 21))
    assert torch.equal(part.image, image[..., 45:65, 46:67])


def test_pair__does_not_care_what_dropped_bands_lack(tmp_path):
    before, after = values(0, bands=3, dtype=np.float32), values(1, bands=3, dtype=np.float32)
    before[1] = np.nan
    files = [save(tmp_path / f"{name}.tif", array, 500000.0) for name, array in (("b", before), ("a", after))]
    image = pair(*files, bands=(2, 0))().image
    assert torch.equal(image, torch.from_numpy(np.stack([before[[2, 0]], after[[2, 0]]])))
    moved = save(tmp_path / "moved.tif", after, 500010.0)  # warped onto the first
    assert bool(torch.isfinite(pair(files[0], moved, bands=(2, 0))().image).all())
    named = (("x", before), ("y", after))
    apart = [[save(tmp_path / f"{name}{i}.tif", array[i : i + 1], 500000.0) for i in range(3)] for name, array in named]
    split = ChangePair(PairFiles("p", tuple(apart[0]), tuple(apart[1]), None), PairReading((2, 0))).measured()
    assert torch.equal(split().image, image)


def test_change_pair__is_served_before_it_is_measured_and_tells_whether_parts_are_exact(tmp_path, placed):
    before, after, mask, _ = placed
    unmeasured = ChangePair(PairFiles("p", (before,), (after,), mask), name="p")
    assert unmeasured.nbytes == 0
    (sample,) = SceneDataset([unmeasured])
    assert sample["image"].shape[:2] == (2, 2)
    plain = pair(save(tmp_path / "one.tif", values(0)), save(tmp_path / "two.tif", values(1)))
    assert plain.exact_parts
    assert not replace(plain, reading=PairReading(prepare=(Binarise(),))).exact_parts
    assert not replace(plain, warped=frozenset({Path("two.tif")})).exact_parts
