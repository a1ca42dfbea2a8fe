# %% [markdown]
# # Change between two dates
#
# What was not there before? First the classical answers, `ChangeVector` and `IRMAD`, which learn nothing; then a plain `SiameseUNet` and
# `ChangeMamba`, a light net of selective scans. The pairs are synthetic: seasons, light and a small shift change everything, but only
# buildings that come or go count. Set `ANOMSEG_PAIRS` to a folder with pairs of your own, such as `A/`, `B/` and `label/`.

# %%
import logging
import os
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch

from anomseg import (
    IRMAD,
    ChangeDataModule,
    ChangeMamba,
    ChangeMambaSpec,
    ChangeTraining,
    ChangeVector,
    FlipRotate,
    PairAugmentation,
    SiameseUNet,
    SiameseUNetSpec,
    SyntheticChangeDataModule,
)
from anomseg.report.error_map import save_change_panel
from anomseg.report.tables import figure_table

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning.*")
pl.seed_everything(0, verbose=False)
output = Path("anomseg-output")
data = SyntheticChangeDataModule(
    train=16, val=4, test=4, size=(96, 96), augment=PairAugmentation(FlipRotate(), swap=0.5), batch_size=4, seed=0
)


# %% [markdown]
# ## Four detectors
#
# All give a score for each pixel, higher where change is likelier. The nets find their threshold on the validation pairs and keep it;
# `test_change_f1` is the figure at that threshold, `test_f1_max` the best that any threshold would reach on the test pairs.
# Seconds of training show how it goes; minutes make a good map, see the page of results.


# %%
recipe = ChangeTraining(pixel="bce", overlap="dice")
fine = ChangeMambaSpec(  # the preset "tiny" with convolutions at full resolution: these buildings are ten pixels wide
    fine=(16, 32),
    width=32,
    depths=(1,),
    arrangements=("interleave",),
    norm="group",
    stem="space_to_depth",
    stem_stride=1,
    stem_shared=True,
    stem_difference=True,
    head="shuffle",
    mlp_ratio=2.0,
)
methods = {
    "change vector": ChangeVector(),
    "IR-MAD": IRMAD(),
    "Siamese U-Net": SiameseUNet(spec=SiameseUNetSpec(width=12, levels=3), recipe=recipe),
    "ChangeMamba": ChangeMamba(spec=fine, recipe=recipe),
}
for name, method in methods.items():
    epochs = 12 if method.learns else 1
    trainer = pl.Trainer(
        max_epochs=epochs,
        check_val_every_n_epoch=epochs,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(method, data)
    trainer.test(method, data, verbose=False)
    print(f"\n{name}\n{figure_table(trainer.callback_metrics)}")

# %% [markdown]
# ## Where they are right and wrong
#
# Before, after, truth, score, and the outcome of each pixel at the threshold: found white, passed black, false alarm red, missed green.

# %%
data.setup("test")
pair = next(iter(data.test_dataloader()))
for name, method in methods.items():
    with torch.no_grad():
        score = method.eval().score_map(pair["image"][:1])[0]
    threshold = float(method.threshold) if hasattr(method, "threshold") else float(score.quantile(0.95))
    print(save_change_panel(output / f"{name}.png", pair["image"][0], pair["mask"][0], score, threshold, name))

# %% [markdown]
# ## Symmetric in time
#
# With `symmetric=True` the score is the mean over both orders of the dates, so it cannot depend on which came first.

# %%
with torch.no_grad():
    forth, back = (methods["ChangeMamba"].score_map(image) for image in (pair["image"], pair["image"].flip(1)))
print("largest difference when the dates are swapped:", float((forth - back).abs().max()))

# %% [markdown]
# ## Pairs of your own
#
# Folders, list files and masks of a dozen dialects are recognised; GeoTIFFs of different extent are aligned. A few pairs are not enough
# to train a net on, but `IRMAD` needs no training: its map is that of the pair alone.

# %%
if folder := os.environ.get("ANOMSEG_PAIRS"):
    own = ChangeDataModule(folder, split="all_stages")
    own.setup("test")
    for batch in own.test_dataloader():
        method = IRMAD() if batch["image"].shape[2] > 1 else ChangeVector()
        image, mask, name = batch["image"], batch["mask"][0], batch["name"][0]
        score = method.score_map(image)[0]
        print(save_change_panel(output / f"{name}.png", image[0], mask, score, float(score.quantile(0.95)), name))
