# %% [markdown]
# # SVDD: what does not belong to the normal class
#
# A density of colour and texture (`NormalDensity`, nothing learnt by descent) beside `SVDD`, whose net draws normal pixels into a sphere.
# The images are synthetic; set `ANOMSEG_TILES` to a folder with `image/` and `label/` (black and white, white being the normal class)
# for your own.

# %%
import logging
import os
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch

from anomseg import (
    SVDD,
    ClassAsNormal,
    ComparisonRow,
    NormalDensity,
    PixelDescriptor,
    RemoteSensingDataModule,
    SceneWriter,
    ShareSplit,
    SyntheticDataModule,
    Texture,
    comparison_sheet,
)
from anomseg.methods.svdd_training import CONTRAST
from anomseg.optimisation import Optimisation
from anomseg.report.tables import figure_table

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning.*")
pl.seed_everything(0, verbose=False)

folder, output = os.environ.get("ANOMSEG_TILES"), Path("anomseg-output")
if folder:
    split = ShareSplit(0.7, 0.0, 0.3)
    data = RemoteSensingDataModule(folder, "image_label", ClassAsNormal((1,)), split, tile=128, crops=4, batch_size=4)
    unseen, bands = data, 3
else:
    data = SyntheticDataModule("multispectral", count=4, size=(64, 64), seed=0, train_on="normal")
    unseen, bands = SyntheticDataModule("multispectral", count=2, size=(64, 64), seed=1), 10

# %% [markdown]
# ## Two densities and a sphere
#
# `gaussian` asks how improbable a pixel is among normal ones, which is RX on a filter bank. `ratio` asks how much likelier it is among all
# pixels of the training images than among the normal ones, and so finds what is *plainer* than the normal class as well. `SVDD` with the
# recipe `CONTRAST` learns a sphere that holds the normal pixels, against all pixels of the images.

# %%
texture = Texture((1.0, 4.0))
methods = {
    "gaussian": NormalDensity(bands, "gaussian", texture, smoothing=1.0),
    "ratio": NormalDensity(bands, "ratio", texture, smoothing=1.0),
    "SVDD": SVDD(
        bands,
        descriptor=PixelDescriptor(),
        recipe=CONTRAST,
        texture=texture,
        score_rule="margin_ratio",
        smoothing=1.0,
        optimisation=Optimisation(lr=3e-3, weight_decay=1e-3),
    ),
}
for name, method in methods.items():
    trainer = pl.Trainer(
        max_epochs=8,
        check_val_every_n_epoch=8 if method.learns else 1,
        num_sanity_val_steps=0,
        accelerator="cpu",
        callbacks=[SceneWriter(output / name)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(method, data)
    trainer.test(method, unseen, verbose=False)
    print(f"\n{name}\n{figure_table(trainer.callback_metrics)}")
    trainer.predict(method, unseen, return_predictions=False)

# %% [markdown]
# ## Has it collapsed?
#
# The classic failure of Deep SVDD is a net that maps everything to the centre. Its diagnostics are logged after each validation, and
# training stops with a message where the spread vanishes.

# %%
print({name: round(float(value), 3) for name, value in methods["SVDD"].diagnostics().items()})

# %% [markdown]
# ## Side by side

# %%
rows = []
with torch.no_grad():
    for batch in list(unseen.predict_dataloader())[:4]:
        maps = {name: method.eval().score_map(batch["image"])[0] for name, method in methods.items()}
        rows.append(ComparisonRow(batch["name"][0], batch["image"][0], batch["mask"][0], maps))
comparison_sheet(rows).savefig(output / "comparison.png")
print(*sorted(output.rglob("*.png")), sep="\n")
