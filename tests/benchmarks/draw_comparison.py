"""Draw every detector on every scene: python tests/benchmarks/draw_comparison.py --maps FOLDER --output FOLDER.

ANOMSEG_DATA names the folder that holds hyperspectral/*.mat. Maps of DirectDetection are read from FOLDER as bench_direct_ablation.py saves
them: its arm "batch norm" has one net, so that the mean of seeds 0 to 4 is DirectDetection() with its five nets and seed 0. Without
--maps they are trained, about half a minute a scene.
Writes comparison.png (all scenes and detectors), separability-<scene>.png and separability-rank-<scene>.png, and prints the gaps.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from anomseg.data.read_scene import find_scenes, read_scene
from anomseg.functional.area_rx import area_filtered_rx, fused_rx, pca_local_rx
from anomseg.functional.crd import pca_collaborative_representation
from anomseg.functional.rx import global_rx, local_rx
from anomseg.functional.separability import Normalisation, separability
from anomseg.methods.direct import DirectDetection
from anomseg.report.comparison import ComparisonRow, comparison_sheet, separability_plot

CLASSICAL: dict[str, Callable[[Tensor], Tensor]] = {
    "RX": global_rx,
    "local RX": lambda image: local_rx(image, inner=9, outer=25, ridge=1.0),
    "CRD": pca_collaborative_representation,
    "pca_local_rx": pca_local_rx,
    "AreaRX": area_filtered_rx,
    "FusedRX": fused_rx,
}

PREFIXES: dict[Normalisation, str] = {"min-max": "separability", "rank": "separability-rank"}


def standard(score: Tensor) -> Tensor:
    return (score - score.mean()) / score.std()


def direct_map(folder: Path | None, scene: str, image: Tensor) -> Tensor:
    """Read the mean map of five nets, or train them where there is no folder."""
    if folder is None:
        return standard(DirectDetection().score(image)[0])
    paths = [folder / f"batch norm--{seed}--{scene}.pt" for seed in range(5)]
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise SystemExit(
            f"Expected maps of five seeds, but got no {missing}. Run bench_direct_ablation.py train --arms 'batch norm' first."
        )
    return standard(torch.stack([standard(torch.load(path)[0].float()) for path in paths]).mean(0))


def compared(folder: Path | None) -> list[ComparisonRow]:
    rows = []
    for path in find_scenes(str(Path(os.environ["ANOMSEG_DATA"]) / "hyperspectral" / "*.mat")):
        scene = read_scene(path)
        image, maps = scene.image[None], {}
        for name, detector in CLASSICAL.items():
            maps[name] = detector(image)[0]
        maps["DirectDetection"] = direct_map(folder, scene.name, image)
        maps["DirectDetection fused"] = maps["DirectDetection"] + standard(maps["FusedRX"])
        if scene.mask is None:
            raise SystemExit(f"Expected a truth in {path}, but got none. Leave the scene out.")
        rows.append(ComparisonRow(scene.name, scene.image, scene.mask, maps, scene.wavelength))
        print(f"{scene.name} scored", flush=True)
    return rows


def print_gaps(rows: list[ComparisonRow], normalisation: Normalisation) -> None:
    """Print a table of the gaps, their mean and the worst."""
    names = [row.name.removeprefix("abu-") for row in rows]
    print(f"gap, {normalisation} | " + " | ".join(names) + " | mean | worst")
    for name in rows[0].maps:
        gaps = [separability(row.maps[name], row.mask, normalisation).gap for row in rows]
        print(f"{name} | " + " | ".join(f"{gap:+.2f}" for gap in [*gaps, sum(gaps) / len(gaps), min(gaps)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--maps", type=Path, help="folder of the maps of DirectDetection")
    parser.add_argument("--output", type=Path, default=Path("comparison"), help="folder of the pictures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = compared(options.maps)
    options.output.mkdir(parents=True, exist_ok=True)
    comparison_sheet(rows).savefig(options.output / "comparison.png")
    for row in rows:
        for normalisation, prefix in PREFIXES.items():
            figure = separability_plot(row.maps, row.mask, row.name, normalisation)
            figure.savefig(options.output / f"{prefix}-{row.name}.png")
    print_gaps(rows, "min-max")
    print_gaps(rows, "rank")


if __name__ == "__main__":
    main()
