"""The whole way on two processes: the same figures, the same calibration, every scene written once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
import lightning.pytorch as pl
import torch
from anomseg import RX, SVDD, NormalDensity, PixelDescriptor, PositionGaussian, SceneWriter, ScoreFusion, SyntheticDataModule

torch.set_num_threads(1)
devices, folder = int(sys.argv[1]), sys.argv[2]
quiet = dict(enable_progress_bar=False, enable_model_summary=False, logger=False, num_sanity_val_steps=0)
strategy = "ddp" if devices > 1 else "auto"
trainer = pl.Trainer(accelerator="cpu", devices=devices, strategy=strategy, max_epochs=1, default_root_dir=folder,
                     callbacks=[SceneWriter(folder + "/maps", pictures=False)], **quiet)
data = SyntheticDataModule("multispectral", count=3, size=(40, 36), tile=16, overlap=4, batch_size=2, train_on="normal")
method = eval(sys.argv[3])
trainer.fit(method, data)
figures = {k: float(v) for k, v in trainer.callback_metrics.items()}
trainer.test(method, data, verbose=False)
figures.update({k: float(v) for k, v in trainer.callback_metrics.items()})
trainer.predict(method, data, return_predictions=False)
if trainer.is_global_zero:
    figures["spread"] = float(method.diagnostics().get("descriptor_spread", 0))
    figures["anchors"] = method.calibration.anchors.tolist()
    figures["normal_pixels"] = int(method.calibration.normal_pixels)
    figures = {k: str(v) for k, v in figures.items()}
    open(folder + "/figures.json", "w").write(json.dumps(figures))
"""


def run(devices: int, folder: Path, method: str = "RX()") -> dict[str, str]:
    folder.mkdir()
    script = folder / "job.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script), str(devices), str(folder), method], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "figures.json").read_text())


def test_two_processes__fit_test_and_predict_as_one(tmp_path):
    one, two = run(1, tmp_path / "one"), run(2, tmp_path / "two")
    assert one == two
    names = sorted(p.name for p in (tmp_path / "one" / "maps").iterdir())
    assert len(names) == 6
    for name in names:
        assert (tmp_path / "one" / "maps" / name).read_bytes() == (tmp_path / "two" / "maps" / name).read_bytes()


@pytest.mark.parametrize(
    "method",
    [
        'NormalDensity(10, "ratio", smoothing=1.0)',
        "PositionGaussian(10, cuts=(2, 4))",
        'ScoreFusion([NormalDensity(10), PositionGaussian(10, ["derivatives"], cuts=())], level="mean")',
    ],
)
def test_two_processes__gather_the_statistics_of_all_training_data(tmp_path, method):
    one, two = run(1, tmp_path / "one", method), run(2, tmp_path / "two", method)
    assert one["normal_pixels"] == two["normal_pixels"]
    assert {k: float(v) for k, v in one.items() if k.startswith("test_")} == pytest.approx(
        {k: float(v) for k, v in two.items() if k.startswith("test_")}, rel=1e-4, nan_ok=True
    )


def test_two_processes__train_one_svdd_together(tmp_path):
    method = 'SVDD(10, PixelDescriptor(latent=4, hidden=(8,)), score_rule="mahalanobis")'
    two = run(2, tmp_path / "two", method)
    assert float(two["test_auroc"]) > 0.7
    assert float(two["spread"]) > 0
