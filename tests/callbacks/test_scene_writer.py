import lightning.pytorch as pl
import numpy as np
import pytest
import rasterio
import torch
from torch.utils.data import DataLoader

from anomseg.callbacks.scene_writer import SceneWriter
from anomseg.data.scene import Scene
from anomseg.data.scene_datamodule import SceneDataModule
from anomseg.functional.score_histogram import count_scores
from anomseg.methods.base import AnomalySegmenter
from anomseg.methods.rx import RX
from anomseg.report.pictures import save_panel
from anomseg.sample import collate

PLACE = (10.0, 0.0, 500000.0, 0.0, -10.0, 4000000.0)
UTM = rasterio.crs.CRS.from_epsg(32633).to_wkt()


def scene(name, place=None, crs=None):
    image = torch.rand(4, 36, 40, generator=torch.Generator().manual_seed(len(name)))
    mask = torch.zeros(36, 40, dtype=torch.long)
    mask[10, 10] = 1
    image[:, 10, 10] += 2
    image[:, :3, :3] = torch.nan
    mask[:3, :3] = 255
    return Scene(name, image, mask, transform=place, crs=crs)


class Scenes(SceneDataModule):
    def __init__(self, *scenes, **arguments):
        super().__init__(**arguments)
        self.held = scenes

    def scenes(self):
        return [lambda s=s: s for s in self.held]


def predict(tmp_path, data, writer):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "num_sanity_val_steps": 0}
    loop = pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, enable_checkpointing=False, callbacks=[writer], **quiet)
    method = RX(background="training")
    loop.fit(method, data)
    loop.predict(method, data, return_predictions=False)
    return method


def test_scene_writer__writes_georeferenced_maps_with_no_data(tmp_path):
    writer = SceneWriter(tmp_path / "out")
    method = predict(tmp_path, Scenes(scene("here", PLACE, UTM)), writer)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["here.png", "here_heatmap.tif", "here_score.tif"]
    with rasterio.open(tmp_path / "out" / "here_heatmap.tif") as file:
        assert file.crs.to_epsg() == 32633
        assert tuple(file.transform)[:6] == PLACE
        assert np.isnan(file.nodata)
        heat = file.read(1)
    assert heat.dtype == np.float32
    assert np.isnan(heat[:3, :3]).all()
    assert not np.isnan(heat[3:]).any()
    expected = method(scene("here").image[None])[0]
    np.testing.assert_allclose(heat[3:], expected[3:].numpy(), rtol=1e-6)


def test_scene_writer__writes_arrays_where_there_is_no_place(tmp_path):
    writer = SceneWriter(tmp_path / "out", pictures=False)
    predict(tmp_path, Scenes(scene("a"), scene("bb")), writer)
    assert sorted(p.name for p in writer.written) == ["a_heatmap.npy", "a_score.npy", "bb_heatmap.npy", "bb_score.npy"]
    assert np.load(tmp_path / "out" / "a_score.npy").shape == (36, 40)


def test_scene_writer__joins_tiles_to_the_map_of_the_whole_scene(tmp_path):
    whole, tiled = SceneWriter(tmp_path / "whole", pictures=False), SceneWriter(tmp_path / "tiled", pictures=False)
    method = predict(tmp_path, Scenes(scene("a"), scene("bb")), whole)
    data = Scenes(scene("a"), scene("bb"), tile=16, overlap=5, batch_size=3)
    loop = pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[tiled])
    loop.predict(method, data, return_predictions=False)
    for one, other in zip(whole.written, tiled.written, strict=True):
        np.testing.assert_allclose(np.load(one), np.load(other), rtol=2e-4)


def test_scene_writer__replaces_files_only_as_a_whole(tmp_path, monkeypatch):
    writer = SceneWriter(tmp_path / "out", pictures=False)
    predict(tmp_path, Scenes(scene("a")), writer)
    before = (tmp_path / "out" / "a_score.npy").read_bytes()

    def full_disk(file, array):
        file.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        predict(tmp_path, Scenes(scene("a")), SceneWriter(tmp_path / "out", pictures=False))
    assert (tmp_path / "out" / "a_score.npy").read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_heatmap.npy", "a_score.npy"]


def test_scene_writer__refuses_a_scene_with_missing_tiles(tmp_path):
    writer = SceneWriter(tmp_path, pictures=False)
    batch = {"image": torch.rand(1, 1, 4, 4), "name": ["a"], "window": [(0, 0, 4, 4)], "scene_size": [(8, 8)]}
    loop = pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_checkpointing=False)
    writer.write_on_batch_end(loop, RX(), {"score": torch.rand(1, 4, 4)}, None, batch, 0, 0)
    with pytest.raises(RuntimeError, match="48 got none"):
        writer.on_predict_epoch_end(loop, RX())
    assert not list(tmp_path.glob("*.npy"))


class Constant(AnomalySegmenter):
    """Scores every pixel alike, and breaks off at one batch."""

    learns = False

    def __init__(self, value=1.0, broken_at=None):
        super().__init__()
        self.value, self.broken_at, self.scored = value, broken_at, 0
        self.calibration.fit(count_scores([torch.rand(100)], []))

    def score(self, image):
        self.scored += 1
        if self.scored == self.broken_at:
            raise RuntimeError("broken off")
        return torch.full_like(image[:, 0], self.value)


def images(*names, size=8, **more):
    one = torch.rand(3, size, size, generator=torch.Generator().manual_seed(0))
    return DataLoader([{"image": one, "name": name, **more} for name in names], batch_size=1, collate_fn=collate)


def predicted(tmp_path, writer, method, batches):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    loop = pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", callbacks=[writer], **quiet)
    loop.predict(method, batches, return_predictions=False)
    return writer


@pytest.mark.parametrize("name", ["{root}/inputs/a", "../inputs/a", "below/../../inputs/a"])
def test_scene_writer__leaves_files_outside_of_its_folder_alone(tmp_path, name):
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / "a.png").write_bytes(b"the picture that is read")
    method, writer = Constant(), SceneWriter(tmp_path / "out")
    with pytest.raises(ValueError, match=r"inputs/a' would write into .*a relative name without '..', such as 'a'"):
        predicted(tmp_path, writer, method, images(name.format(root=tmp_path)))
    assert method.scored == 0
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "inputs").iterdir()] == ["a.png"]
    assert (tmp_path / "inputs" / "a.png").read_bytes() == b"the picture that is read"


def test_scene_writer__makes_the_subfolders_that_a_name_holds(tmp_path):
    predicted(tmp_path, SceneWriter(tmp_path / "out"), Constant(), images("north/a", "south/a"))
    files = [str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")]
    assert sorted(files) == [f"{side}/a{kind}" for side in ("north", "south") for kind in (".png", "_heatmap.npy", "_score.npy")]


def test_scene_writer__forgets_a_run_that_was_broken_off(tmp_path):
    writer = SceneWriter(tmp_path / "out", pictures=False)
    with pytest.raises(RuntimeError, match="broken off"):
        predicted(tmp_path, writer, Constant(1.0, broken_at=3), images("a", "b", "c"))
    predicted(tmp_path, writer, Constant(3.0), images("b", "a"))
    assert [path.name for path in writer.written] == ["b_score.npy", "b_heatmap.npy", "a_score.npy", "a_heatmap.npy"]
    assert all((np.load(tmp_path / "out" / f"{name}_score.npy") == 3).all() for name in "ab")


WHOLE = {"window": (0, 0, 8, 8), "scene_size": (8, 8)}


@pytest.mark.parametrize("more", [{}, WHOLE], ids=["without windows", "with windows"])
@pytest.mark.parametrize("names", [("a", "a"), ("a", "b", "a")], ids=["in a row", "later"])
def test_scene_writer__refuses_two_images_of_one_name(tmp_path, names, more):
    with pytest.raises(ValueError, match="every part of scene 'a' once"):
        predicted(tmp_path, SceneWriter(tmp_path / "out", pictures=False), Constant(), images(*names, **more))


@pytest.mark.parametrize(
    "windows",
    [
        [(0, 0, 8, 8), (0, 8, 8, 8), (0, 0, 8, 8)],
        [(0, 0, 8, 8), (0, 0, 8, 16)],
        [(0, 0, 8, 16), (0, 8, 8, 8)],
    ],
    ids=["a tile again", "the whole after a tile", "a tile after the whole"],
)
def test_scene_writer__refuses_a_part_that_came_already(tmp_path, windows):
    samples = [{"image": torch.rand(3, *window[2:]), "name": "a", "window": window, "scene_size": (8, 16)} for window in windows]
    with pytest.raises(ValueError, match="every part of scene 'a' once"):
        predicted(tmp_path, SceneWriter(tmp_path / "out", pictures=False), Constant(), DataLoader(samples, collate_fn=collate))
    assert not (tmp_path / "out").exists()


def test_scene_writer__says_that_the_size_of_a_tiled_scene_is_missing(tmp_path):
    samples = [{"image": torch.rand(3, 8, 8), "name": "a", "window": (0, column, 8, 8)} for column in (0, 8)]
    with pytest.raises(ValueError, match=r"Expected 'scene_size', .* scene 'a' at \(0, 8, 8, 8\) came without"):
        predicted(tmp_path, SceneWriter(tmp_path / "out", pictures=False), Constant(), DataLoader(samples, collate_fn=collate))


@pytest.mark.parametrize("bands", [1, 2, 3, 6])
@pytest.mark.parametrize("dates", [1, 2])
def test_scene_writer__draws_the_picture_of_all_bands_while_it_holds_three(tmp_path, bands, dates):
    writer, method = SceneWriter(tmp_path / "out"), Constant()
    image = torch.rand(2, bands, 24, 16, generator=torch.Generator().manual_seed(0))[:dates]
    image[:, bands - 1, :5, :4] = torch.nan  # in one band, which need not be among those shown
    image = image if dates == 2 else image[0]
    wavelength = tuple(400.0 + 80 * band for band in range(bands))
    more = {"name": "a", "scene_size": (24, 16), "wavelength": wavelength}
    mask = torch.zeros(24, 16, dtype=torch.long)
    mask[10, 10] = 1
    tiles = [{"image": image[..., r : r + 12, :], "mask": mask[r : r + 12], "window": (r, 0, 12, 16), **more} for r in (0, 12)]
    method.score = lambda image: torch.ones(len(image), *image.shape[-2:])
    predicted(tmp_path, writer, method, DataLoader(tiles, collate_fn=collate))
    score = torch.ones(24, 16)
    expected = save_panel(tmp_path / "a.png", image, score, method.calibration(score), mask, "a", wavelength)
    assert (tmp_path / "out" / "a.png").read_bytes() == expected.read_bytes()
    assert np.isnan(np.load(tmp_path / "out" / "a_score.npy")).sum() == 20


def test_scene_writer__holds_no_band_without_a_picture(tmp_path):
    writer, image = SceneWriter(tmp_path / "out", pictures=False), torch.rand(1, 50, 64, 64)
    batch = {"image": image, "name": ["a"]}
    writer.write_on_batch_end(None, Constant(), {"score": image[:, 0]}, None, batch, 0, 0)
    held = [value for value in vars(writer._open).values() if isinstance(value, torch.Tensor)]
    assert sum(value.untyped_storage().nbytes() for value in held) < 5 * 4 * 64 * 64


class Classes(Constant):
    """Name the class of each pixel beside the score: what the image holds, but for the border of a tile, where it is wrong."""

    def score(self, image):
        classes = image[:, 0].nan_to_num().long()
        classes[:, :, [0, -1]] = 9
        self.further_maps = {"classes": classes}
        return image[:, 0].nan_to_num()


@pytest.mark.parametrize("place", [None, PLACE])
def test_scene_writer__writes_further_maps_from_the_middle_of_each_tile(tmp_path, place):
    image = torch.randint(4, (1, 8, 20), generator=torch.Generator().manual_seed(0)).float()
    image[0, 3, 3] = torch.nan
    windows = [(0, 0, 8, 12), (0, 8, 8, 12)]
    more = {"name": "a", "scene_size": (8, 20), "transform": place, "crs": UTM if place else None}
    samples = [{"image": image[:, :, w[1] : w[1] + 12], "window": w, **more} for w in windows]
    writer = predicted(tmp_path, SceneWriter(tmp_path / "out", pictures=False), Classes(), DataLoader(samples, collate_fn=collate))
    assert writer.written[-1] == tmp_path / "out" / ("a_classes.tif" if place else "a_classes.npy")
    if place:
        with rasterio.open(writer.written[-1]) as file:
            classes = file.read(1)
    else:
        classes = np.load(writer.written[-1])
    np.testing.assert_array_equal(classes[:, 1:-1], image[0, :, 1:-1].numpy())
    assert (classes[:, [0, -1]] == 9).all()
