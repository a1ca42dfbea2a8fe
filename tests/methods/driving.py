"""Small driving-like batches: vertical stripes of classes, squares of another colour as outliers."""

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset

from anomseg.sample import collate

COLOURS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9]])


class Stripes(Dataset):
    def __init__(self, count=8, outliers=True, seed=0, size=(32, 48), void=0):
        self.count, self.outliers, self.seed, self.size, self.void = count, outliers, seed, size, void

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        g = torch.Generator().manual_seed(1000 * self.seed + index)
        height, width = self.size
        label = (torch.arange(width) * 3 // width).expand(height, width).clone()
        label = label.roll(int(torch.randint(width, (), generator=g)), 1)
        image = COLOURS[label].permute(2, 0, 1) + 0.1 * torch.randn(3, height, width, generator=g)
        mask = torch.zeros(height, width, dtype=torch.int64)
        if self.outliers:
            row, column = (int(torch.randint(length - 10, (), generator=g)) for length in self.size)
            image[:, row : row + 10, column : column + 10] = 0.45 + 0.3 * torch.rand(3, 10, 10, generator=g)
            mask[row : row + 10, column : column + 10], label[row : row + 10, column : column + 10] = 1, 255
        if self.void:
            mask[: self.void], label[: self.void] = 255, 255
        return {"image": image, "mask": mask, "label": label, "name": f"frame-{self.seed}-{index}"}


def loader(batch_size=4, **options):
    return DataLoader(Stripes(**options), batch_size=batch_size, collate_fn=collate)


def trainer(folder, epochs=1, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return pl.Trainer(default_root_dir=folder, max_epochs=epochs, log_every_n_steps=1, **{**quiet, **options})
