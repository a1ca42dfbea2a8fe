"""What `torch.export` makes of a method gives the heat map that the method gives, without data, too."""

import lightning.pytorch as pl
import pytest
import torch

from anomseg.data.outlier_paste import OutlierPaste
from anomseg.data.outlier_sources import SyntheticOutliers
from anomseg.data.synthetic import SyntheticDataModule
from anomseg.data.synthetic_change import SyntheticChangeDataModule
from anomseg.data.synthetic_driving import SyntheticDrivingDataModule
from anomseg.methods.change import SiameseUNet
from anomseg.methods.change_classical import ChangeVector
from anomseg.methods.normal_density import NormalDensity
from anomseg.methods.pebal import PEBAL
from anomseg.methods.reconstruction import Reconstruction
from anomseg.methods.segmenter import Segmenter
from anomseg.methods.svdd import SVDD
from anomseg.nets.autoencoder import AutoencoderSpec
from anomseg.nets.siamese_unet import SiameseUNetSpec


def scenes():
    return SyntheticDataModule("rgb", count=1, size=(32, 32))


def pairs():
    return SyntheticChangeDataModule(train=1, val=1, test=1, size=(48, 48))


def streets():
    return SyntheticDrivingDataModule(train=1, val=1, test=1, size=(48, 48), batch_size=1)


def streets_with_outliers():
    paste = OutlierPaste((SyntheticOutliers(),), 1.0)
    return SyntheticDrivingDataModule(train=2, val=1, test=1, size=(48, 48), batch_size=1, paste=paste)


@pytest.mark.parametrize(
    ("method", "data", "shape"),
    [
        (lambda: NormalDensity(smoothing=2.0), scenes, (3, 32, 32)),
        (lambda: SVDD(in_channels=3), scenes, (3, 32, 32)),
        (lambda: Reconstruction(in_channels=3, net=AutoencoderSpec(width=4, depth=2)), scenes, (3, 32, 32)),
        (lambda: Segmenter(classes=6), streets, (3, 48, 48)),
        (lambda: PEBAL(classes=6, class_decoder=True, score_rule="ensemble", centred=True), streets_with_outliers, (3, 48, 48)),
        (lambda: SiameseUNet(spec=SiameseUNetSpec(width=4, levels=2)), pairs, (2, 3, 48, 48)),
        (lambda: ChangeVector(), pairs, (2, 3, 48, 48)),
    ],
    ids=["normal_density", "svdd", "reconstruction", "segmenter", "pebal", "siamese", "change_vector"],
)
def test_export__gives_the_heat_map_of_the_method(method, data, shape, tmp_path):
    pl.seed_everything(0, verbose=False)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}
    method = method()
    pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, num_sanity_val_steps=0, **quiet).fit(method, data())
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exported = torch.export.export(method.eval(), (image,)).module()
        torch.testing.assert_close(exported(image), method(image))
        image[..., 3:9, 5] = torch.nan
        torch.testing.assert_close(exported(image), method(image))
