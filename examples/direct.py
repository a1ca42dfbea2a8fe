# %% [markdown]
# # Direct detection: a net that learns from the scene itself
#
# One scene from file to map: `FusedRX`, which learns nothing, beside `DirectDetection(fused=True)`, whose net is taught on that very scene
# without a label. Then all scenes, and at last one set of weights for scenes of another sensor.
# The scenes are synthetic; set `ANOMSEG_SCENES` to a folder or glob of `.mat`, `.hdr`, `.tif` or `.npy` files for your own.

# %%
import logging
import os
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch

from anomseg import DirectDetection, FusedRX, HyperspectralDataModule, SceneWriter, SyntheticDataModule, TransferDetection
from anomseg.data.read_scene import find_scenes
from anomseg.methods.direct import DirectTraining
from anomseg.report.comparison import ComparisonRow, comparison_sheet, separability_plot
from anomseg.report.tables import figure_table

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning.*")
warnings.filterwarnings("ignore", message="Image AUROC")  # every scene here holds anomalies
pl.seed_everything(0, verbose=False)

folder, output = os.environ.get("ANOMSEG_SCENES"), Path("anomseg-output")


def scenes(count, bands=60):
    """Serve the first scenes of the folder, or synthetic ones."""
    if folder:
        return HyperspectralDataModule(list(find_scenes(folder))[:count])
    return SyntheticDataModule("hyperspectral", count=count or 2, size=(64, 64), bands=bands)


def run(method, data, name, taught_on=None, epochs=1):
    """Fit on one module, test and write the maps of another, and print the figures."""
    trainer = pl.Trainer(
        max_epochs=epochs,
        check_val_every_n_epoch=epochs,
        num_sanity_val_steps=0,
        accelerator="cpu",
        callbacks=[SceneWriter(output / name)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, taught_on or data)
    trainer.test(method, data, verbose=False)
    print(f"\n{name}\n{figure_table(trainer.callback_metrics)}")
    trainer.predict(method, data, return_predictions=False)


# %% [markdown]
# ## One scene
#
# The recipe here is small, to be quick: one net, 12 times implanted. The default has five nets of 24, half a minute for 10,000 pixels.

# %%
recipe = DirectTraining(nets=1, implants=12)
methods = {"FusedRX": FusedRX(), "DirectDetection fused": DirectDetection(fused=True, recipe=recipe)}
for name, method in methods.items():
    run(method, scenes(1), name)

# %% [markdown]
# ## All scenes
#
# The net of a scene starts anew, so that scenes do not influence each other. Maps that were made already are kept.

# %%
for name, method in methods.items():
    run(method, scenes(None), name)

# %% [markdown]
# ## One set of weights for another sensor
#
# `TransferDetection` is taught on one scene and scores others without training, with other bands as well: what enters its nets are the
# first whitened components of a scene. 50 steps are few: a single scene wants about 150, and eight scenes teach more than one.

# %%
shared = TransferDetection(recipe=DirectTraining(nets=1))
run(shared, scenes(None, bands=40), "TransferDetection", taught_on=scenes(1), epochs=50)

# %% [markdown]
# ## Side by side
#
# Every panel shows how far up a pixel ranks in its own map, in powers of ten, so that detectors compare. Boxes span 10 to 90 % of a class.

# %%
rows = []
for batch in scenes(None).predict_dataloader():
    maps = {name: method.score(batch["image"])[0] for name, method in {**methods, "TransferDetection": shared}.items()}
    rows.append(ComparisonRow(batch["name"][0], batch["image"][0], batch["mask"][0], maps, batch["wavelength"][0]))
comparison_sheet(rows).savefig(output / "comparison.png")
separability_plot(rows[0].maps, rows[0].mask, rows[0].name, "rank").savefig(output / "separability.png")
print(*sorted(output.rglob("*.png")), sep="\n")
assert all(torch.isfinite(score).all() for row in rows for score in row.maps.values())
