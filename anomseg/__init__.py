"""Anomaly segmentation in PyTorch Lightning: scenes go in, a calibrated map of what does not belong comes out.

Importing this package imports no torch: names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from anomseg.registry import BY_NAME
from anomseg.version import __version__

if TYPE_CHECKING:
    from anomseg.calibration.base import Calibration
    from anomseg.calibration.quantile import QuantileCalibration, RankCalibration
    from anomseg.callbacks.collapse_monitor import CollapseMonitor
    from anomseg.callbacks.collapse_monitor_rules import CollapseLimits
    from anomseg.callbacks.defect_validator import DefectValidator
    from anomseg.callbacks.reconstruction_strips import ReconstructionStrips
    from anomseg.callbacks.scene_writer import SceneWriter
    from anomseg.checkpoint import load
    from anomseg.data.augment import Albumentations, Augmentation, FlipRotate
    from anomseg.data.change import ChangeDataModule
    from anomseg.data.change_folders import ChangeLayout, PairFiles
    from anomseg.data.class_rule import ClassAsNormal, ClassTable, IndexThreshold
    from anomseg.data.defect_base import Defect
    from anomseg.data.defects import (
        Blend,
        Blur,
        ColourShift,
        Corruption,
        Crack,
        CutPaste,
        Hole,
        PerlinTexture,
        Scar,
        StructuralShift,
        default_defects,
    )
    from anomseg.data.driving import DrivingDataModule
    from anomseg.data.driving_augment import MirrorZoom
    from anomseg.data.driving_layouts import DrivingLayout
    from anomseg.data.group_split import GroupSplit
    from anomseg.data.hyperspectral import HyperspectralDataModule
    from anomseg.data.image_folders import FolderLayout
    from anomseg.data.image_split import NameSplit, ShareSplit
    from anomseg.data.industrial import IndustrialDataModule
    from anomseg.data.industrial_layouts import IndustrialLayout
    from anomseg.data.industrial_patches import PatchRule
    from anomseg.data.industrial_sets import IndustrialSet
    from anomseg.data.industrial_split import SessionSplit
    from anomseg.data.outlier_paste import OutlierPaste
    from anomseg.data.outlier_sources import MaskedObjects, RGBACutouts, SyntheticOutliers, TextureCrops
    from anomseg.data.pair_augment import GainOffset, PairAugmentation
    from anomseg.data.pair_transform import Binarise, GlobalShift, LocalShift
    from anomseg.data.read_scene import read_scene
    from anomseg.data.remote_sensing import RemoteSensingDataModule
    from anomseg.data.sampler import UnpaddedSampler
    from anomseg.data.scene import Scene
    from anomseg.data.scene_datamodule import SceneDataModule
    from anomseg.data.scene_dataset import SceneDataset
    from anomseg.data.synthetic import SyntheticDataModule
    from anomseg.data.synthetic_change import SyntheticChangeDataModule
    from anomseg.data.synthetic_driving import SyntheticDrivingDataModule
    from anomseg.data.synthetic_industrial import SyntheticIndustrialDataModule
    from anomseg.data.synthetic_pairs import PairDifficulty
    from anomseg.functional.area_rx import area_filtered_rx, fuse_scores, pca_local_rx
    from anomseg.functional.bootstrap import bootstrap_auroc
    from anomseg.functional.clustering import class_separation
    from anomseg.functional.crd import pca_collaborative_representation
    from anomseg.functional.filter_bank import filter_bank
    from anomseg.functional.first_jump import first_jump_threshold
    from anomseg.functional.irmad import irmad
    from anomseg.functional.rx import global_rx, local_rx
    from anomseg.functional.scan import cross_selective_scan, scan_backend, selective_scan
    from anomseg.functional.separability import separability
    from anomseg.functional.similarity import ssim
    from anomseg.functional.simulation import AnomalySimulation
    from anomseg.functional.virtual_anomalies import VirtualAnomaly
    from anomseg.methods.area_rx import AreaRX, FusedRX
    from anomseg.methods.base import AnomalySegmenter
    from anomseg.methods.change import ChangeMamba, SiameseUNet
    from anomseg.methods.change_classical import IRMAD, ChangeVector
    from anomseg.methods.change_training import ChangeTraining
    from anomseg.methods.class_router import ClassRouting
    from anomseg.methods.crd import CRD
    from anomseg.methods.direct import DirectDetection
    from anomseg.methods.direct_training import DirectTraining
    from anomseg.methods.direct_transfer import TransferDetection
    from anomseg.methods.feature_library import FeatureLibrary
    from anomseg.methods.feature_library_parts import PatchPosition
    from anomseg.methods.normal_density import NormalDensity
    from anomseg.methods.pebal import PEBAL
    from anomseg.methods.pebal_training import MAX_ENTROPY, PEBALLoss
    from anomseg.methods.position_gaussian import PositionGaussian
    from anomseg.methods.position_statistics import BorderStatistics
    from anomseg.methods.readouts import MSP, Energy, Entropy, MaxLogit, StandardizedMaxLogit
    from anomseg.methods.reconstruction import Reconstruction
    from anomseg.methods.reconstruction_masking import MaskedPrediction
    from anomseg.methods.reconstruction_score import ReconstructionScore
    from anomseg.methods.reconstruction_training import ReconstructionLoss
    from anomseg.methods.residual_pattern import RPL, RPLLoss
    from anomseg.methods.rx import RX
    from anomseg.methods.score_fusion import ScoreFusion
    from anomseg.methods.segmenter import SegmentationReadout, Segmenter
    from anomseg.methods.svdd import SVDD
    from anomseg.methods.svdd_inputs import Texture
    from anomseg.methods.svdd_training import CONTRAST, DEEP_SVDD, SVDDTraining
    from anomseg.metrics.bootstrap import ImageBootstrap
    from anomseg.metrics.change import BoundaryF1, ChangeConfusion
    from anomseg.metrics.components import ComponentF1
    from anomseg.metrics.heat import CalibrationError, PixelBCE
    from anomseg.metrics.pixel import (
        Detectability,
        F1Max,
        FPRAtTPR,
        ImageAUROC,
        ImageAveragePrecision,
        ImageF1Max,
        OracleIoU,
        PixelAUROC,
        PixelAveragePrecision,
        ThresholdAtFPR,
    )
    from anomseg.metrics.region import PerRegionOverlap
    from anomseg.metrics.segmentation import MeanIoU
    from anomseg.nets.autoencoder import AutoencoderSpec
    from anomseg.nets.change_mamba import ChangeMambaSpec
    from anomseg.nets.deeplab import DeepLabV3Plus
    from anomseg.nets.descriptor import PixelDescriptor
    from anomseg.nets.feature_encoder import FilterBankFeatures, RandomPyramid, TimmFeatures, TrainedFeatures
    from anomseg.nets.feature_reconstruction import FeatureReconstructionSpec
    from anomseg.nets.patch_descriptor import PatchDescriptor, TimmDescriptor
    from anomseg.nets.segmentation import CompactSegmenter
    from anomseg.nets.segmentation_module import TrainedModule
    from anomseg.nets.siamese_unet import SiameseUNetSpec
    from anomseg.nets.wide_resnet import WideResNet38
    from anomseg.optimisation import Optimisation
    from anomseg.report.comparison import ComparisonRow, comparison_sheet, separability_plot
    from anomseg.report.error_map import write_error_maps
    from anomseg.sample import IGNORE, check_sample, collate

__all__ = [  # spelled out for editors and type checkers; a test compares it with the table
    "CONTRAST",
    "CRD",
    "DEEP_SVDD",
    "IGNORE",
    "IRMAD",
    "MAX_ENTROPY",
    "MSP",
    "PEBAL",
    "RPL",
    "RX",
    "SVDD",
    "Albumentations",
    "AnomalySegmenter",
    "AnomalySimulation",
    "AreaRX",
    "Augmentation",
    "AutoencoderSpec",
    "Binarise",
    "Blend",
    "Blur",
    "BorderStatistics",
    "BoundaryF1",
    "Calibration",
    "CalibrationError",
    "ChangeConfusion",
    "ChangeDataModule",
    "ChangeLayout",
    "ChangeMamba",
    "ChangeMambaSpec",
    "ChangeTraining",
    "ChangeVector",
    "ClassAsNormal",
    "ClassRouting",
    "ClassTable",
    "CollapseLimits",
    "CollapseMonitor",
    "ColourShift",
    "CompactSegmenter",
    "ComparisonRow",
    "ComponentF1",
    "Corruption",
    "Crack",
    "CutPaste",
    "DeepLabV3Plus",
    "Defect",
    "DefectValidator",
    "Detectability",
    "DirectDetection",
    "DirectTraining",
    "DrivingDataModule",
    "DrivingLayout",
    "Energy",
    "Entropy",
    "F1Max",
    "FPRAtTPR",
    "FeatureLibrary",
    "FeatureReconstructionSpec",
    "FilterBankFeatures",
    "FlipRotate",
    "FolderLayout",
    "FusedRX",
    "GainOffset",
    "GlobalShift",
    "GroupSplit",
    "Hole",
    "HyperspectralDataModule",
    "ImageAUROC",
    "ImageAveragePrecision",
    "ImageBootstrap",
    "ImageF1Max",
    "IndexThreshold",
    "IndustrialDataModule",
    "IndustrialLayout",
    "IndustrialSet",
    "LocalShift",
    "MaskedObjects",
    "MaskedPrediction",
    "MaxLogit",
    "MeanIoU",
    "MirrorZoom",
    "NameSplit",
    "NormalDensity",
    "Optimisation",
    "OracleIoU",
    "OutlierPaste",
    "PEBALLoss",
    "PairAugmentation",
    "PairDifficulty",
    "PairFiles",
    "PatchDescriptor",
    "PatchPosition",
    "PatchRule",
    "PerRegionOverlap",
    "PerlinTexture",
    "PixelAUROC",
    "PixelAveragePrecision",
    "PixelBCE",
    "PixelDescriptor",
    "PositionGaussian",
    "QuantileCalibration",
    "RGBACutouts",
    "RPLLoss",
    "RandomPyramid",
    "RankCalibration",
    "Reconstruction",
    "ReconstructionLoss",
    "ReconstructionScore",
    "ReconstructionStrips",
    "RemoteSensingDataModule",
    "SVDDTraining",
    "Scar",
    "Scene",
    "SceneDataModule",
    "SceneDataset",
    "SceneWriter",
    "ScoreFusion",
    "SegmentationReadout",
    "Segmenter",
    "SessionSplit",
    "ShareSplit",
    "SiameseUNet",
    "SiameseUNetSpec",
    "StandardizedMaxLogit",
    "StructuralShift",
    "SyntheticChangeDataModule",
    "SyntheticDataModule",
    "SyntheticDrivingDataModule",
    "SyntheticIndustrialDataModule",
    "SyntheticOutliers",
    "Texture",
    "TextureCrops",
    "ThresholdAtFPR",
    "TimmDescriptor",
    "TimmFeatures",
    "TrainedFeatures",
    "TrainedModule",
    "TransferDetection",
    "UnpaddedSampler",
    "VirtualAnomaly",
    "WideResNet38",
    "__version__",
    "area_filtered_rx",
    "bootstrap_auroc",
    "check_sample",
    "class_separation",
    "collate",
    "comparison_sheet",
    "cross_selective_scan",
    "default_defects",
    "filter_bank",
    "first_jump_threshold",
    "fuse_scores",
    "global_rx",
    "irmad",
    "load",
    "local_rx",
    "pca_collaborative_representation",
    "pca_local_rx",
    "read_scene",
    "scan_backend",
    "selective_scan",
    "separability",
    "separability_plot",
    "ssim",
    "write_error_maps",
]


def __getattr__(name: str) -> Any:
    entry = BY_NAME.get(name)
    if entry is None:
        raise AttributeError(f"module 'anomseg' has no attribute '{name}'; `anomseg list` shows what it has")
    value = getattr(import_module(entry.module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
