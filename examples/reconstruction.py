# %% [markdown]
# # Reconstruction: what a net cannot rebuild
#
# Woven cloth and gears, normal ones to learn from; scratches, pits, stains, missing pieces and wrong colours to find. Gaussians of texture
# for each distance to the border (`PositionGaussian`) and a library of normal patches (`FeatureLibrary`) learn nothing by descent and come
# first. Beside them a denoising `Reconstruction` sees images with synthetic defects, and learns to give the clean ones back. The surfaces
# are synthetic; set `ANOMSEG_PARTS` to a folder in the layout of MVTec (`<class>/{train/good,test/<defect>,ground_truth/<defect>}`) for
# your own.

# %%
import logging
import os
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch

from anomseg import (
    AutoencoderSpec,
    CollapseMonitor,
    ComparisonRow,
    Corruption,
    DefectValidator,
    FeatureLibrary,
    FilterBankFeatures,
    ImageBootstrap,
    IndustrialDataModule,
    PositionGaussian,
    Reconstruction,
    ReconstructionLoss,
    ReconstructionScore,
    ReconstructionStrips,
    SyntheticIndustrialDataModule,
    comparison_sheet,
)
from anomseg.optimisation import Optimisation

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning.*")
pl.seed_everything(0, verbose=False)
output, folder = Path("anomseg-output"), os.environ.get("ANOMSEG_PARTS")


def surfaces(**training):
    """Serve the same images to every method; they differ in how they are trained on."""
    if folder:
        return IndustrialDataModule(folder, size=(128, 128), channels=3, **training)
    return SyntheticIndustrialDataModule(("woven", "gear"), train=16, val=6, test=20, size=(48, 48), **training)


whole = surfaces()
crops = surfaces(tile=48, batch_size=4)
corrupted = surfaces(tile=48, batch_size=4, corruption=Corruption())
anomalous = {}
for batch in whole.test_dataloader():
    for category, name, label in zip(batch["category"], batch["name"], batch["image_label"].tolist(), strict=True):
        if label == 1:
            anomalous.setdefault(category, name)  # the first of each category


# %% [markdown]
# ## Fit, test, print
#
# Figures stand for each category, as their mean over the categories, and pooled. Both belong into a report: where the scores of categories
# lie apart, the mean is fine and the pooled figure poor. `ImageBootstrap` draws the images anew for an interval of the pooled figures:
# forty images tell less than one would like.


# %%
def table(figures):
    """Lay image and pixel AUROC out."""
    rows = [name.partition("/")[2] for name in sorted(figures) if name.startswith("test_image_auroc/")]
    names = {row: f"/{row}" for row in rows} | {"mean over class": "_mean_over_class", "pooled": ""}
    print(f"{'':<18}{'image_auroc':>12}{'auroc':>8}")
    for row, suffix in names.items():
        print(f"{row:<18}{figures[f'test_image_auroc{suffix}']:>12.3f}{figures[f'test_auroc{suffix}']:>8.3f}")
    for figure in ("image_auroc", "auroc"):
        print(f"{figure} pooled, 95 %: {figures[f'test_{figure}_low']:.3f} to {figures[f'test_{figure}_high']:.3f}")


def run(name, method, data, epochs=1, every=1, callbacks=()):
    """Fit and validate, test, print."""
    method.test_metrics.pooled.add_metrics(ImageBootstrap(pixel_replicates=10))
    trainer = pl.Trainer(
        max_epochs=epochs,
        check_val_every_n_epoch=every,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0 if method.learns else None,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(method, data)
    trainer.test(method, whole, verbose=False)
    print(f"\n{name}")
    table({figure: float(value) for figure, value in trainer.callback_metrics.items()})


# %% [markdown]
# ## First, without a net
#
# `PositionGaussian` fits one Gaussian of derivatives for each distance to the border, here over both categories; `FeatureLibrary` keeps
# normal patches, here described by a filter bank.

# %%
methods = {
    "PositionGaussian": PositionGaussian(3, ["derivatives"]),
    "FeatureLibrary": FeatureLibrary(3, FilterBankFeatures(step=2), patch=1, normalise="standardise", coreset=1500, memory=20_000),
}
for name, method in methods.items():
    run(name, method, whole)

# %% [markdown]
# ## A net that repairs
#
# Training crops come as `corrupted`, `image` and `defect`: the net sees the first and must give the second back, and its head of defects
# learns the third. `CollapseMonitor` watches a few training images, `DefectValidator` puts defects into the normal validation images, and
# `ReconstructionStrips` draws what the net makes of the same images, epoch after epoch.

# %%
monitor = CollapseMonitor()
validator = DefectValidator(strengths=(0.5,), images=6, replicates=50, minimum=6)
strips = ReconstructionStrips(output / "strips", images=list(anomalous.values())[:3], every_n_epochs=4, source="test")
methods["denoising"] = Reconstruction(
    3,
    AutoencoderSpec(width=8, depth=3, skips="all", defect_head=True),
    scoring=ReconstructionScore(l1=1.0, msgms=1.0, defect=2.0),
    optimisation=Optimisation(lr=4e-3, warmup=0.05),
)
run("denoising", methods["denoising"], corrupted, 8, 4, (monitor, validator, strips))
print("verdicts:", *(monitor.verdicts or ["none"]), sep="\n")

# %% [markdown]
# ## Which defects does it find?
#
# Each kind at each strength has figures of its own, the worst first. Where to choose a checkpoint, monitor `defects/select`. They are
# synthetic, of the kinds that the net has trained on, and say nothing about what real defects look like.

# %%
print(validator.table())

# %% [markdown]
# ## A collapse, on purpose
#
# A plain autoencoder: all skips are open, and no image is corrupted. The net warns before its first step, and is right: it rebuilds images
# best of all, because it has learnt to copy. Defects are copied, too, and leave hardly a residual. The monitor says so.

# %%
watched = CollapseMonitor()
plain = Reconstruction(
    3,
    AutoencoderSpec(width=8, depth=1, skips="all", norm="none"),
    ReconstructionLoss(ssim=0.0),
    optimisation=Optimisation(lr=4e-3, schedule="constant"),
)
run("plain, on purpose", plain, crops, 10, 10, [watched])
print("verdicts:", *(watched.verdicts or ["none"]), sep="\n")
print("skill and share of defects copied:")
for name, seen in {"denoising": monitor, "plain": watched}.items():
    print(f"{name:<12}{seen.figures['skill']:>8.3f}{seen.figures['copied']:>8.3f}")

# %% [markdown]
# ## Side by side

# %%
rows, methods["plain"] = [], plain
with torch.no_grad():
    for batch in whole.test_dataloader():
        for index in (batch["image_label"] == 1).nonzero().flatten()[:1].tolist():
            image = batch["image"][index : index + 1]
            maps = {name: method.eval().score_map(image)[0] for name, method in methods.items()}
            rows.append(ComparisonRow(batch["name"][index], image[0], batch["mask"][index], maps))
comparison_sheet(rows[:5]).savefig(output / "comparison.png")
print(*sorted(output.glob("strips/summary_*.png")), output / "comparison.png", sep="\n")
