import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from anomseg.data.class_rule import ClassAsNormal, ClassTable, IndexThreshold
from anomseg.data.folder_image import FolderImage
from anomseg.data.image_folders import LAYOUTS, FolderLayout, ImageFiles
from anomseg.data.scene_datamodule import KnownScene, SceneFacts
from anomseg.errors import SceneFormatError, SceneNotFoundError

rasterio = pytest.importorskip("rasterio")
TRANSFORM = (2.0, 0.0, 100.0, 0.0, -2.0, 50.0)
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 3, (6, 8)).astype(np.uint8)
LAYOUT = FolderLayout(("image.tif",), "mask.png", ClassTable(("a", "b", "c")), "index")


def save_tif(path, bands, nodata=None):
    bands = np.asarray(bands)
    count, height, width = bands.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": bands.dtype, "nodata": nodata}
    with rasterio.open(path, "w", **profile, crs="EPSG:32633", transform=rasterio.Affine(*TRANSFORM)) as file:
        file.write(bands)
    return path


def save_png(path, array):
    Image.fromarray(np.asarray(array, np.uint8)).save(path)
    return path


@pytest.fixture
def bands():
    return RNG.integers(1, 60000, (4, 6, 8)).astype(np.uint16)


@pytest.fixture
def image(tmp_path, bands):
    files = ImageFiles("one", (save_tif(tmp_path / "image.tif", bands),), (("", save_png(tmp_path / "mask.png", IDS)),))
    return FolderImage("one", files, LAYOUT, ClassAsNormal(("b",)))


def test_folder_image__reads_values_as_stored_with_their_place(image, bands):
    scene = image()
    assert torch.equal(scene.image, torch.from_numpy(bands.astype(np.float32)))
    assert torch.equal(scene.mask, torch.from_numpy(IDS != 1).long())
    assert scene.transform == TRANSFORM
    assert "UTM zone 33N" in scene.crs


def test_folder_image__makes_nan_and_no_data_void(tmp_path, image, bands):
    floats = bands.astype(np.float32)
    floats[1, 0, 0] = np.nan
    floats[2, 3, 4] = -1
    save_tif(tmp_path / "image.tif", floats, nodata=-1)
    scene = image()
    assert torch.isnan(scene.image).all(dim=0).nonzero().tolist() == [[0, 0], [3, 4]]
    assert (scene.mask == 255).nonzero().tolist() == [[0, 0], [3, 4]]


def test_folder_image__takes_the_no_data_value_of_the_layout_where_all_bands_have_it(tmp_path, image, bands):
    bands[:, 2, 2] = 0
    bands[0, 1, 1] = 0
    save_tif(tmp_path / "image.tif", bands)
    scene = replace(image, layout=replace(LAYOUT, nodata=0.0))()
    assert (scene.mask == 255).nonzero().tolist() == [[2, 2]]


def test_folder_image__keeps_the_named_bands_of_all_band_files(tmp_path, image, bands):
    nir = save_tif(tmp_path / "nir.tif", bands[:1] // 2)
    both = replace(image, files=replace(image.files, bands=(*image.files.bands, nir)), bands=(4, 1))
    assert both.measured().stored == 5
    assert both.measured().nbytes == both().image.nbytes
    assert torch.equal(both().image, torch.from_numpy(np.stack([bands[0] // 2, bands[1]]).astype(np.float32)))
    with pytest.raises(ValueError, match=r"0 to 4 in .*got 5"):
        replace(both, bands=(5,))()


def test_folder_image__does_not_care_what_dropped_bands_lack(tmp_path, image, bands):
    floats = bands.astype(np.float32)
    floats[1] = np.nan
    floats[2, 3, 4] = -1
    floats[3, 5, 6] = np.inf
    save_tif(tmp_path / "image.tif", floats, nodata=-1)
    dead = save_tif(tmp_path / "dead.tif", np.full((1, 6, 8), -1, np.float32), nodata=-1)
    nir = save_tif(tmp_path / "nir.tif", bands[:1].astype(np.float32))
    both = replace(image, files=replace(image.files, bands=(tmp_path / "image.tif", dead, nir)), bands=(5, 0))
    for kept in (both, both.measured()):
        assert torch.equal(kept().image, torch.from_numpy(bands[[0, 0]].astype(np.float32)))
        assert torch.equal(kept().mask, torch.from_numpy(IDS != 1).long())
    for one in (replace(image, bands=(2, 0)), replace(image, bands=(2, 0)).measured()):
        assert torch.isnan(one().image).all(dim=0).nonzero().tolist() == [[3, 4]]
        assert (one.part((2, 1, 3, 5)).mask == 255).nonzero().tolist() == [[1, 3]]


def test_folder_image__counts_no_data_of_the_layout_among_the_kept_bands(tmp_path, image, bands):
    bands[:3, 2, 2] = 0
    save_tif(tmp_path / "image.tif", bands)
    layout = replace(LAYOUT, nodata=0.0)
    assert (replace(image, layout=layout, bands=(0, 1, 2))().mask == 255).nonzero().tolist() == [[2, 2]]
    assert not (replace(image, layout=layout)().mask == 255).any()


def test_folder_image__derives_its_truth_beside_dead_bands(tmp_path, image, bands):
    derived = replace(image, layout=replace(LAYOUT, masks=IndexThreshold((1, 3))), classes=ClassAsNormal(("below",)), bands=(0,))
    floats = bands.astype(np.float32)
    floats[2] = np.nan
    floats[3, 0, 0] = np.nan
    save_tif(tmp_path / "image.tif", floats)
    expected = torch.from_numpy(floats[1] > floats[3]).long()
    expected[0, 0] = 255
    assert torch.equal(derived().mask, expected)
    assert torch.equal(derived().image, torch.from_numpy(floats[:1]))
    assert derived.found() == ("below", "above")


def test_folder_image__blocks_are_windows_of_the_whole(image):
    whole, block = image(), image.block((1, 2, 4, 5))
    part = block()
    assert torch.equal(part.image, whole.image[:, 1:5, 2:7])
    assert torch.equal(part.mask, whole.mask[1:5, 2:7])
    assert part.name == "one_r00001_c00002"
    assert part.transform == (2.0, 0.0, 104.0, 0.0, -2.0, 48.0)
    assert block.facts() == SceneFacts(part.name, (4, 5), True)


def test_folder_image__reads_parts_under_its_own_name_and_transform(image):
    for whole in (image, image.block((1, 2, 4, 5))):
        scene, part = whole(), whole.part((1, 2, 2, 3))
        assert torch.equal(part.image, scene.image[:, 1:3, 2:5])
        assert torch.equal(part.mask, scene.mask[1:3, 2:5])
        assert (part.name, part.transform, part.crs) == (scene.name, scene.transform, scene.crs)


def test_folder_image__knows_its_size_from_the_header(image):
    measured = image.measured()
    assert (measured.size, measured.stored) == ((6, 8), 4)
    assert measured.nbytes == image().image.nbytes
    assert isinstance(measured, KnownScene)
    assert measured.facts() == SceneFacts("one", (6, 8), True)


def test_folder_image__refuses_masks_of_another_size(tmp_path, image):
    save_png(tmp_path / "mask.png", IDS[:, :5])
    with pytest.raises(ValueError, match=r"Expected 6 x 8 pixels in .*mask\.png.* as in .*image\.tif.* but got 6 x 5"):
        image.measured()


@pytest.mark.parametrize(
    ("transform", "crs"),
    [
        ((2.0, 0.0, 10100.0, 0.0, -2.0, 50.0), "EPSG:32633"),  # 10 km away
        ((4.0, 0.0, 100.0, 0.0, -4.0, 50.0), "EPSG:32633"),  # of other pixels
        ((2.0, 0.0, 100.0, 0.0, 2.0, 38.0), "EPSG:32633"),  # turned upside down
        (TRANSFORM, "EPSG:32632"),
        ((2.0, 0.0, 10100.0, 0.0, -2.0, 50.0), None),
    ],
)
def test_folder_image__refuses_masks_and_bands_of_another_place(tmp_path, image, bands, transform, crs):
    profile = {"driver": "GTiff", "count": 1, "height": 6, "width": 8, "dtype": "uint8"}
    for name, place, system in (("mask.tif", transform, crs), ("here.tif", TRANSFORM, "EPSG:32633")):
        with rasterio.open(tmp_path / name, "w", **profile, crs=system, transform=rasterio.Affine(*place)) as file:
            file.write(IDS[None])
    truth = replace(image.files, masks=(("", tmp_path / "mask.tif"),))
    band = replace(image.files, bands=(*image.files.bands, tmp_path / "mask.tif"))
    for files in (truth, band):
        with pytest.raises(ValueError, match=r"mask\.tif' on the pixels of .*image\.tif"):
            replace(image, files=files).measured()
    assert replace(image, files=replace(image.files, masks=(("", tmp_path / "here.tif"),))).measured().size == (6, 8)


def test_folder_image__refuses_pictures_that_are_stored_otherwise_than_shown(tmp_path, image):
    palette = Image.fromarray(IDS)
    palette.putpalette(list(reversed(range(256))) * 3)
    palette.save(tmp_path / "palette.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(IDS).save(tmp_path / "turned.jpg", exif=turned)
    for name, message in (("palette.png", "indices of a palette"), ("turned.jpg", "EXIF orientation is 6")):
        with pytest.raises(SceneFormatError, match=message):
            replace(image, files=replace(image.files, bands=(tmp_path / name,))).measured()


def test_folder_image__keeps_a_band_that_passes_for_alpha_where_it_is_asked_for(tmp_path, image):
    water = RNG.integers(1, 255, (4, 6, 8)).astype(np.uint8)
    water[3] = 0
    files = replace(image.files, bands=(save_tif(tmp_path / "water.tif", water),))
    scene = replace(image, files=files, bands=(3, 0)).measured()()
    assert torch.equal(scene.image, torch.from_numpy(water[[3, 0]].astype(np.float32)))


def test_folder_image__overlaps_class_layers_and_voids_what_is_not_valid(tmp_path, image):
    layers = {"water": IDS == 1, "weed_cluster": IDS >= 1}
    masks = tuple((name, save_png(tmp_path / f"{name}.png", layer * 255)) for name, layer in layers.items())
    valid = np.ones((6, 8), bool)
    valid[:, 0] = False
    files = replace(image.files, masks=masks, valid=(save_png(tmp_path / "valid.png", valid * 255),))
    layered = replace(image, files=files, layout=LAYOUTS["agriculture_vision"], classes=ClassAsNormal(("water",)))
    expected = np.where(valid, IDS != 1, 255)
    assert torch.equal(layered().mask, torch.from_numpy(expected.astype(np.int64)))
    assert layered.found() == ("background", "water", "weed_cluster")


def test_folder_image__derives_its_truth_from_bands_that_it_drops(image, bands):
    derived = replace(image, layout=replace(LAYOUT, masks=IndexThreshold((1, 3))), classes=ClassAsNormal(("below",)), bands=(0,))
    expected = bands[1].astype(np.int64) > bands[3].astype(np.int64)
    assert torch.equal(derived().mask, torch.from_numpy(expected).long())
    assert torch.equal(derived.truth(), derived().mask)
    assert set(derived.found()) <= {"above", "below"}


def test_folder_image__reads_hdf5(tmp_path, image, bands):
    h5py = pytest.importorskip("h5py")
    for name, array in (("img", bands.transpose(1, 2, 0).astype(np.float64)), ("mask", IDS == 1)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file[name] = array.astype(np.float64)
    files = ImageFiles("1", (tmp_path / "img.h5",), (("", tmp_path / "mask.h5"),))
    cube = FolderImage("1", files, LAYOUTS["landslide4sense"], ClassAsNormal(("no landslide",)))
    assert cube.measured().stored == 4
    scene = cube()
    assert torch.equal(scene.image, torch.from_numpy(bands.astype(np.float32)))
    assert torch.equal(scene.mask, torch.from_numpy(IDS == 1).long())
    with h5py.File(tmp_path / "img.h5", "r+") as file:
        file["img"][..., 2] = np.nan
    assert torch.equal(replace(cube, bands=(3, 0))().image, torch.from_numpy(bands[[3, 0]].astype(np.float32)))


def test_folder_image__has_no_truth_without_a_mask(image):
    bare = replace(image, files=replace(image.files, masks=()))
    assert bare().mask is None
    assert not bare.facts().has_truth
    with pytest.raises(SceneNotFoundError, match=r"Expected a mask .*image\.tif"):
        bare.truth()


def test_folder_image__pickles_and_compares_by_value(image):
    copy = pickle.loads(pickle.dumps(image))
    assert copy == image
    assert hash(copy) == hash(image)
