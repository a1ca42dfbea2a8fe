# %% [markdown]
# # Unknown objects on the road
#
# A segmentation net knows six classes of a street. What does it say where something stands that is none of them? First the classes are
# learnt, then read-outs of the net are compared, which cost nothing, then `PEBAL` learns to abstain on shapes that are pasted into the
# frames. The streets are synthetic, and their unknown objects (boxes, cones, balls, animals, trunks) are never seen in training.

# %%
import logging
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch

from anomseg import (
    MSP,
    PEBAL,
    CompactSegmenter,
    ComparisonRow,
    Energy,
    Entropy,
    MaxLogit,
    OutlierPaste,
    SegmentationReadout,
    Segmenter,
    SyntheticDrivingDataModule,
    SyntheticOutliers,
    comparison_sheet,
)
from anomseg.optimisation import Optimisation
from anomseg.report.tables import figure_table

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning.*")
pl.seed_everything(0, verbose=False)
output = Path("anomseg-output")
output.mkdir(exist_ok=True)
streets = {"train": 32, "val": 4, "test": 8, "size": (72, 96), "batch_size": 4, "seed": 0}
clean = SyntheticDrivingDataModule(**streets)
pasted = SyntheticDrivingDataModule(**streets, paste=OutlierPaste((SyntheticOutliers(),), probability=0.7))
net = CompactSegmenter(width=16, levels=3)


# %%
def run(method, data, epochs):
    """Fit, test, print."""
    trainer = pl.Trainer(
        max_epochs=epochs,
        check_val_every_n_epoch=epochs,
        num_sanity_val_steps=0,
        gradient_clip_val=5.0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(method, data)
    trainer.test(method, clean, verbose=False)
    figures = {name: value for name, value in trainer.callback_metrics.items() if "/" not in name}
    print(f"{type(method).__name__} {getattr(method, 'readout', '')}  mIoU {float(figures['test_miou']):.3f}\n{figure_table(figures)}\n")
    return trainer


# %% [markdown]
# ## The known classes

# %%
segmenter = Segmenter(6, net, optimisation=Optimisation(4e-3, warmup=0.05))
run(segmenter, clean, 24).save_checkpoint(output / "segmenter.ckpt")

# %% [markdown]
# ## Read-outs of the trained net
#
# They need no training: `SegmentationReadout` takes the checkpoint and only calibrates.

# %%
for readout in (MSP(), MaxLogit(), Energy()):
    run(SegmentationReadout(6, str(output / "segmenter.ckpt"), net, readout=readout), clean, 1)

# %% [markdown]
# ## Learning to abstain
#
# To be fair to the read-outs, a control trains on for as long without outliers: longer training alone makes them better.

# %%
start, rate = str(output / "segmenter.ckpt"), Optimisation(2e-3, warmup=0.05)
control = Segmenter(6, net, readout=Entropy(), segmenter=start, optimisation=rate)
run(control, clean, 12)
pebal = PEBAL(6, net, segmenter=start, optimisation=rate)
run(pebal, pasted, 12)

# %% [markdown]
# ## Side by side

# %%
rows = []
with torch.no_grad():
    for batch in list(clean.test_dataloader())[:1]:
        maps = {name: method.eval().score_map(batch["image"]) for name, method in (("control", control), ("PEBAL", pebal))}
        for index in range(4):
            own = {name: scores[index] for name, scores in maps.items()}
            rows.append(ComparisonRow(batch["name"][index], batch["image"][index], batch["mask"][index], own))
comparison_sheet(rows).savefig(output / "comparison.png")
print(output / "comparison.png")
