import lightning.pytorch as pl
import numpy as np
import pytest
import rasterio
import torch

from anomseg.callbacks.scene_writer import SceneWriter
from anomseg.data.scene import Scene
from anomseg.data.scene_datamodule import SceneDataModule
from anomseg.methods.rx import RX

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
