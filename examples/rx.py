# %% [markdown]
# # RX: from scenes to calibrated maps
#
# Two detectors on the same scenes: global RX compares a pixel with the whole scene, local RX with a window around it.
# The scenes are synthetic; set `ANOMSEG_SCENES` to a folder or glob of `.mat`, `.hdr`, `.tif` or `.npy` files for your own.

# %%
import logging
import os
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch

from anomseg import RX, HyperspectralDataModule, SceneWriter, SyntheticDataModule, local_rx
from anomseg.report.tables import figure_table

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning.*")
pl.seed_everything(0, verbose=False)

folder = os.environ.get("ANOMSEG_SCENES")
data = HyperspectralDataModule(folder) if folder else SyntheticDataModule("hyperspectral", count=2, size=(96, 96), bands=60)

# %% [markdown]
# ## Fit, test, predict
#
# RX learns nothing. Fitting calibrates: a random quarter of the blocks of each scene says how normal pixels score, and the
# heat map says how unusual a score is among them. The calibration travels in the checkpoint.

# %%
output = Path("anomseg-output")
methods = {"global": RX(), "local": RX(mode="local", inner=9, outer=25)}
for name, method in methods.items():
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[SceneWriter(output / name)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, data)
    trainer.test(method, data, verbose=False)
    print(f"\n{name} RX\n{figure_table(trainer.callback_metrics)}")
    trainer.predict(method, data, return_predictions=False)

# %% [markdown]
# ## The maps
#
# Each scene became a score, a heat map and a picture.

# %%
pictures = sorted(output.rglob("*.png"))
print(*pictures, sep="\n")

# %% [markdown]
# ## On a tensor
#
# The same detector is a function. NaN marks pixels without data: they take no part and score 0.

# %%
image = next(iter(data.predict_dataloader()))["image"]
score = local_rx(image, inner=9, outer=25, ridge=1.0)
heatmap = methods["local"].calibration(score)
share = (heatmap > 0.5).float().mean()
print(
    f"image {tuple(image.shape)}, score {tuple(score.shape)} up to {score.max():.0f}, heat above 0.5 on {100 * share:.2f} % of the pixels"
)
assert torch.isfinite(score).all()
