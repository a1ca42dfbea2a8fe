"""The one table of public names: what `import anomseg` offers, what `anomseg list` prints, what the command line calls by short names."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal[
    "method",
    "data",
    "calibration",
    "metric",
    "function",
    "callback",
    "contract",
    "recipe",
    "net",
    "readout",
    "layout",
    "split",
    "augmentation",
    "defect",
    "outliers",
]


class Entry(NamedTuple):
    """Name one public object.

    Attributes:
        name: how it is imported, `from anomseg import <name>`.
        module: where it is defined.
        kind: what it is; a `contract` is what others are made of: base classes, and what passes between data and methods.
        summary: one line for `anomseg list`.
    """

    name: str
    module: str
    kind: Kind
    summary: str

    @property
    def short_name(self) -> str:
        """Give the name that the command line takes: `Hyperspectral` for `HyperspectralDataModule`."""
        return self.name.removesuffix("DataModule") if self.kind == "data" else self.name

    @property
    def class_path(self) -> str:
        """Give the dotted path."""
        return f"{self.module}.{self.name}"


TABLE: tuple[Entry, ...] = (
    Entry("RX", "anomseg.methods.rx", "method", "Mahalanobis distance from the background, global or in a dual window"),
    Entry("AreaRX", "anomseg.methods.area_rx", "method", "small bright and dark details of the whitened components"),
    Entry("FusedRX", "anomseg.methods.area_rx", "method", "area-filtered RX fused with local RX in principal components"),
    Entry("CRD", "anomseg.methods.crd", "method", "what remains of a pixel when its neighbours rebuild it"),
    Entry("NormalDensity", "anomseg.methods.normal_density", "method", "how improbable colour and texture are among normal pixels"),
    Entry("DirectDetection", "anomseg.methods.direct", "method", "a small net taught on each scene by pseudo labels and simulation"),
    Entry("TransferDetection", "anomseg.methods.direct_transfer", "method", "direct detection with one set of weights for any sensor"),
    Entry("SVDD", "anomseg.methods.svdd", "method", "normal pixels drawn into a sphere, and how badly a pixel fits them"),
    Entry("ChangeMamba", "anomseg.methods.change", "method", "what changed between two dates, by a light net of selective scans"),
    Entry("SiameseUNet", "anomseg.methods.change", "method", "what changed between two dates, by a plain Siamese U-Net"),
    Entry("Segmenter", "anomseg.methods.segmenter", "method", "known classes of a scene, and a score for what none of them explains"),
    Entry("SegmentationReadout", "anomseg.methods.segmenter", "method", "a score from a segmentation net that is trained already"),
    Entry("PEBAL", "anomseg.methods.pebal", "method", "a segmentation net that learns to abstain on outliers"),
    Entry("RPL", "anomseg.methods.residual_pattern", "method", "a residual that unsettles a frozen segmentation net on outliers"),
    Entry("PositionGaussian", "anomseg.methods.position_gaussian", "method", "how improbable texture is at its distance from the border"),
    Entry("ScoreFusion", "anomseg.methods.score_fusion", "method", "the worst of what several methods say, each in its own units"),
    Entry("Reconstruction", "anomseg.methods.reconstruction", "method", "normal images rebuilt, or repaired, and what differs from them"),
    Entry("FeatureLibrary", "anomseg.methods.feature_library", "method", "the nearest of the normal patches kept from training"),
    Entry("IRMAD", "anomseg.methods.change_classical", "method", "what two dates do not share, whatever light and sensor; learns nothing"),
    Entry("ChangeVector", "anomseg.methods.change_classical", "method", "how far apart the two dates of a pixel lie; learns nothing"),
    Entry("HyperspectralDataModule", "anomseg.data.hyperspectral", "data", "cubes from MATLAB, ENVI, GeoTIFF and NumPy files"),
    Entry("RemoteSensingDataModule", "anomseg.data.remote_sensing", "data", "folders of images with class masks, some classes as normal"),
    Entry("ChangeDataModule", "anomseg.data.change", "data", "folders of images before and after, with masks of change"),
    Entry("DrivingDataModule", "anomseg.data.driving", "data", "driving scenes with labels, held-out classes and pasted objects"),
    Entry("SyntheticDataModule", "anomseg.data.synthetic", "data", "seeded scenes with implanted targets; needs no files"),
    Entry("SyntheticChangeDataModule", "anomseg.data.synthetic_change", "data", "seeded pairs with buildings that come and go"),
    Entry("SyntheticDrivingDataModule", "anomseg.data.synthetic_driving", "data", "seeded streets with unknown objects; needs no files"),
    Entry("IndustrialDataModule", "anomseg.data.industrial", "data", "products and surfaces: MVTec, tiles, cracks, boards, folders"),
    Entry(
        "SyntheticIndustrialDataModule",
        "anomseg.data.synthetic_industrial",
        "data",
        "seeded surfaces and parts with defects; needs no files",
    ),
    Entry(
        "QuantileCalibration", "anomseg.calibration.quantile", "calibration", "two quantiles of the normal scores become fixed heat values"
    ),
    Entry("RankCalibration", "anomseg.calibration.quantile", "calibration", "heat is the share of normal pixels below"),
    Entry("PixelAUROC", "anomseg.metrics.pixel", "metric", "area under the pixel ROC curve of unbounded scores"),
    Entry("PixelAveragePrecision", "anomseg.metrics.pixel", "metric", "average precision of unbounded scores"),
    Entry("FPRAtTPR", "anomseg.metrics.pixel", "metric", "false-positive rate at a true-positive rate"),
    Entry("F1Max", "anomseg.metrics.pixel", "metric", "best F1 and its threshold"),
    Entry("OracleIoU", "anomseg.metrics.pixel", "metric", "mean IoU of both classes at Youden's threshold"),
    Entry("ThresholdAtFPR", "anomseg.metrics.pixel", "metric", "threshold at a false-positive rate"),
    Entry("Detectability", "anomseg.metrics.pixel", "metric", "3-D ROC family of hyperspectral detection"),
    Entry("ImageAUROC", "anomseg.metrics.pixel", "metric", "AUROC with one score for each image"),
    Entry("ImageAveragePrecision", "anomseg.metrics.pixel", "metric", "average precision with one score for each image"),
    Entry("ImageF1Max", "anomseg.metrics.pixel", "metric", "best F1 and its threshold with one score for each image"),
    Entry("PerRegionOverlap", "anomseg.metrics.region", "metric", "AUPRO: every region counts the same"),
    Entry("ImageBootstrap", "anomseg.metrics.bootstrap", "metric", "intervals of figures by drawing images anew"),
    Entry("PixelBCE", "anomseg.metrics.heat", "metric", "cross-entropy between heat maps and truth"),
    Entry("CalibrationError", "anomseg.metrics.heat", "metric", "expected calibration error of heat maps"),
    Entry("ChangeConfusion", "anomseg.metrics.change", "metric", "precision, recall, F1, IoU, accuracy and kappa at a threshold"),
    Entry("BoundaryF1", "anomseg.metrics.change", "metric", "F1 of the outlines, within a few pixels"),
    Entry("MeanIoU", "anomseg.metrics.segmentation", "metric", "mean IoU of the known classes"),
    Entry("ComponentF1", "anomseg.metrics.components", "metric", "F1 of whole objects, averaged over eleven overlaps"),
    Entry("global_rx", "anomseg.functional.rx", "function", "RX against the whole image"),
    Entry("local_rx", "anomseg.functional.rx", "function", "RX against a dual window"),
    Entry("area_filtered_rx", "anomseg.functional.area_rx", "function", "RX on details smaller than an area"),
    Entry("pca_local_rx", "anomseg.functional.area_rx", "function", "RX against a dual window in principal components"),
    Entry("fuse_scores", "anomseg.functional.area_rx", "function", "joins maps by standard scores of their logarithms"),
    Entry("pca_collaborative_representation", "anomseg.functional.crd", "function", "residual of collaborative representation"),
    Entry("separability", "anomseg.functional.separability", "function", "how far the scores of both classes lie apart"),
    Entry("class_separation", "anomseg.functional.clustering", "function", "how well clusters of features agree with classes"),
    Entry("first_jump_threshold", "anomseg.functional.first_jump", "function", "a threshold where sorted scores first jump; no labels"),
    Entry("ssim", "anomseg.functional.similarity", "function", "structural similarity that leaves void out"),
    Entry("bootstrap_auroc", "anomseg.functional.bootstrap", "function", "interval of image AUROC by drawing images or groups anew"),
    Entry("SceneWriter", "anomseg.callbacks.scene_writer", "callback", "writes score, heat map and picture of every scene"),
    Entry(
        "DefectValidator", "anomseg.callbacks.defect_validator", "callback", "judges a method on synthetic defects, and none that saturates"
    ),
    Entry(
        "CollapseMonitor", "anomseg.callbacks.collapse_monitor", "callback", "says in words while it happens that a training has collapsed"
    ),
    Entry(
        "ReconstructionStrips",
        "anomseg.callbacks.reconstruction_strips",
        "callback",
        "draws reconstructions of a few images over the epochs",
    ),
    Entry("comparison_sheet", "anomseg.report.comparison", "function", "a picture of scenes and the maps of several detectors"),
    Entry("separability_plot", "anomseg.report.comparison", "function", "boxes of both classes' scores for several detectors"),
    Entry("write_error_maps", "anomseg.report.error_map", "function", "before, after, truth, score and errors of each pair as pictures"),
    Entry("AnomalySegmenter", "anomseg.methods.base", "contract", "the base class of every method"),
    Entry("Optimisation", "anomseg.optimisation", "recipe", "how parameters are stepped: rate, warm-up, schedule"),
    Entry("load", "anomseg.checkpoint", "function", "loads any method from its checkpoint"),
    Entry("IGNORE", "anomseg.sample", "contract", "the mask value of void pixels, 255"),
    Entry("ComparisonRow", "anomseg.report.comparison", "contract", "a scene with the maps of several detectors"),
    Entry("check_sample", "anomseg.sample", "function", "checks a batch against the contract"),
    Entry("read_scene", "anomseg.data.read_scene", "function", "reads one scene from a file"),
    Entry("ClassAsNormal", "anomseg.data.class_rule", "layout", "which classes are normal, and which are ignored"),
    Entry("ClassTable", "anomseg.data.class_rule", "layout", "names, ids and colours of classes"),
    Entry("IndexThreshold", "anomseg.data.class_rule", "layout", "two classes from a band index such as NDWI"),
    Entry("FolderLayout", "anomseg.data.image_folders", "layout", "where images and masks lie in a folder"),
    Entry("IndustrialSet", "anomseg.data.industrial_sets", "layout", "one data set among several that train one model"),
    Entry("IndustrialLayout", "anomseg.data.industrial_layouts", "layout", "how an industrial data set lies on disk"),
    Entry("ShareSplit", "anomseg.data.image_split", "split", "seeded shares of images or blocks for each stage"),
    Entry("NameSplit", "anomseg.data.image_split", "split", "listed images for each stage"),
    Entry("GroupSplit", "anomseg.data.group_split", "split", "pairs of one group in one stage, by an expression or a list"),
    Entry("SessionSplit", "anomseg.data.industrial_split", "split", "shares of whole sessions, read from numbers in names"),
    Entry("PatchRule", "anomseg.data.industrial_patches", "split", "patches away from defects as normal images"),
    Entry("FlipRotate", "anomseg.data.augment", "augmentation", "flips and quarter turns of any bands"),
    Entry("Albumentations", "anomseg.data.augment", "augmentation", "a pipeline of albumentations for up to 4 bands"),
    Entry(
        "PairAugmentation", "anomseg.data.pair_augment", "augmentation", "the same geometry for both dates, light for each, dates swapped"
    ),
    Entry("Binarise", "anomseg.data.pair_transform", "augmentation", "both dates of a pair to 0 and 1"),
    Entry("GlobalShift", "anomseg.data.pair_transform", "augmentation", "one date moved by whole pixels onto the other"),
    Entry("LocalShift", "anomseg.data.pair_transform", "augmentation", "and each place of it by a few pixels of its own"),
    Entry("PairFiles", "anomseg.data.change_folders", "layout", "the files of one pair: two dates and their truth"),
    Entry("ChangeLayout", "anomseg.data.change_folders", "layout", "where pairs and masks of change lie in a folder"),
    Entry("DrivingLayout", "anomseg.data.driving_layouts", "layout", "where frames and labels lie, and what their codes mean"),
    Entry("GainOffset", "anomseg.data.pair_augment", "augmentation", "another light for images of any bands"),
    Entry("MirrorZoom", "anomseg.data.driving_augment", "augmentation", "frames mirrored, enlarged and in another light"),
    Entry("OutlierPaste", "anomseg.data.outlier_paste", "outliers", "objects of no known class pasted into frames"),
    Entry("RGBACutouts", "anomseg.data.outlier_sources", "outliers", "objects from files with an alpha channel"),
    Entry("MaskedObjects", "anomseg.data.outlier_sources", "outliers", "annotated objects of images, as of COCO"),
    Entry("TextureCrops", "anomseg.data.outlier_sources", "outliers", "smooth shapes filled with crops of images"),
    Entry("SyntheticOutliers", "anomseg.data.outlier_sources", "outliers", "smooth shapes with drawn textures"),
    Entry("Corruption", "anomseg.data.defects", "defect", "synthetic defects beside a clean target"),
    Entry("CutPaste", "anomseg.data.defects", "defect", "a patch of the image somewhere else"),
    Entry("Crack", "anomseg.data.defects", "defect", "a thin line that wanders and forks"),
    Entry("Scar", "anomseg.data.defects", "defect", "a thin strip of other pixels"),
    Entry("PerlinTexture", "anomseg.data.defects", "defect", "smooth noise of another texture"),
    Entry("Blend", "anomseg.data.defects", "defect", "a part of another image, blended in"),
    Entry("Blur", "anomseg.data.defects", "defect", "a region out of focus"),
    Entry("ColourShift", "anomseg.data.defects", "defect", "a region of another colour"),
    Entry("Hole", "anomseg.data.defects", "defect", "rectangles of one value"),
    Entry("StructuralShift", "anomseg.data.defects", "defect", "a region moved against the rest"),
    Entry("PairDifficulty", "anomseg.data.synthetic_pairs", "recipe", "what differs in synthetic pairs without being change"),
    Entry("SVDDTraining", "anomseg.methods.svdd_training", "recipe", "losses of an SVDD and the rules of its centre and radius"),
    Entry("Texture", "anomseg.methods.svdd_inputs", "recipe", "the filter bank before an SVDD's net"),
    Entry("DirectTraining", "anomseg.methods.direct_training", "recipe", "what the net of direct detection learns from"),
    Entry("ChangeTraining", "anomseg.methods.change_training", "recipe", "losses of a change network"),
    Entry("MSP", "anomseg.methods.readouts", "readout", "one minus the largest probability"),
    Entry("MaxLogit", "anomseg.methods.readouts", "readout", "the largest logit"),
    Entry("Entropy", "anomseg.methods.readouts", "readout", "entropy of the probabilities"),
    Entry("Energy", "anomseg.methods.readouts", "readout", "free energy"),
    Entry("StandardizedMaxLogit", "anomseg.methods.readouts", "readout", "the largest logit against its class"),
    Entry("PEBALLoss", "anomseg.methods.pebal_training", "recipe", "weights of the terms that teach to abstain"),
    Entry("BorderStatistics", "anomseg.methods.position_statistics", "recipe", "a score against its place, by distance to the border"),
    Entry("RPLLoss", "anomseg.methods.residual_pattern", "recipe", "weights of the terms of the residual"),
    Entry("CollapseLimits", "anomseg.callbacks.collapse_monitor_rules", "recipe", "values of figures that count as a collapse"),
    Entry("ReconstructionLoss", "anomseg.methods.reconstruction_training", "recipe", "weights of the losses of a reconstruction"),
    Entry("ReconstructionScore", "anomseg.methods.reconstruction_score", "recipe", "weights of the terms of its score"),
    Entry("MaskedPrediction", "anomseg.methods.reconstruction_masking", "recipe", "pixels predicted from images that hide them"),
    Entry("PatchPosition", "anomseg.methods.feature_library_parts", "recipe", "how much the place of a patch counts"),
    Entry("ClassRouting", "anomseg.methods.class_router", "recipe", "how the class of an image is found"),
    Entry("PatchDescriptor", "anomseg.nets.patch_descriptor", "net", "15 x 15 patches of every pixel at several scales"),
    Entry("ChangeMambaSpec", "anomseg.nets.change_mamba", "net", "every choice of the net of selective scans"),
    Entry("SiameseUNetSpec", "anomseg.nets.siamese_unet", "net", "width and depth of the Siamese U-Net"),
    Entry("AutoencoderSpec", "anomseg.nets.autoencoder", "net", "depth, width and skips of the autoencoder"),
    Entry("FeatureReconstructionSpec", "anomseg.nets.feature_reconstruction", "net", "a decoder of the features of a fixed encoder"),
    Entry("TimmFeatures", "anomseg.nets.feature_encoder", "net", "features of any encoder of timm"),
    Entry("RandomPyramid", "anomseg.nets.feature_encoder", "net", "features of fixed random convolutions"),
    Entry("FilterBankFeatures", "anomseg.nets.feature_encoder", "net", "features of the filter bank"),
    Entry("TrainedFeatures", "anomseg.nets.feature_encoder", "net", "features of a method that is trained already"),
    Entry("CompactSegmenter", "anomseg.nets.segmentation", "net", "a residual encoder-decoder for small images and CPUs"),
    Entry("DeepLabV3Plus", "anomseg.nets.deeplab", "net", "DeepLabV3+ over any encoder of timm"),
    Entry("WideResNet38", "anomseg.nets.wide_resnet", "net", "DeepLabV3+ over the WideResNet38 of the driving benchmarks"),
    Entry("TrainedModule", "anomseg.nets.segmentation_module", "net", "a trained segmentation net of your own"),
    Entry("PixelDescriptor", "anomseg.nets.descriptor", "net", "a pixel's own values, for spectra and features"),
    Entry("TimmDescriptor", "anomseg.nets.patch_descriptor", "net", "the feature pyramid of any timm encoder"),
    Entry("filter_bank", "anomseg.functional.filter_bank", "function", "texture and colour of every pixel at several scales"),
    Entry("selective_scan", "anomseg.functional.scan", "function", "the recurrence of Mamba on any device, with its own gradient"),
    Entry("cross_selective_scan", "anomseg.functional.scan", "function", "selective scans of images in four directions"),
    Entry("scan_backend", "anomseg.functional.scan", "function", "which backend a selective scan takes on a device, and why"),
    Entry("irmad", "anomseg.functional.irmad", "function", "iteratively reweighted multivariate alteration detection"),
    Entry("Calibration", "anomseg.calibration.base", "contract", "the base class of calibrations"),
    Entry("SceneDataModule", "anomseg.data.scene_datamodule", "contract", "the base class of data modules of scenes and images"),
    Entry("SceneDataset", "anomseg.data.scene_dataset", "contract", "tiles or crops of scenes as samples"),
    Entry("Scene", "anomseg.data.scene", "contract", "an image with its truth, its name and its place on the ground"),
    Entry("UnpaddedSampler", "anomseg.data.sampler", "contract", "gives every sample to one rank, and keeps scenes together"),
    Entry("collate", "anomseg.sample", "function", "joins samples to a batch"),
    Entry("Augmentation", "anomseg.data.augment", "contract", "the base class of augmentations"),
    Entry("Defect", "anomseg.data.defect_base", "contract", "the base class of synthetic defects"),
    Entry("VirtualAnomaly", "anomseg.functional.virtual_anomalies", "contract", "the base class of virtually anomalous copies"),
    Entry("AnomalySimulation", "anomseg.functional.simulation", "recipe", "the anomalies that are implanted into a whitened scene"),
    Entry("CONTRAST", "anomseg.methods.svdd_training", "recipe", "SVDD: normal pixels against all pixels of the same images"),
    Entry("DEEP_SVDD", "anomseg.methods.svdd_training", "recipe", "SVDD: plain one-class Deep SVDD"),
    Entry("MAX_ENTROPY", "anomseg.methods.pebal_training", "recipe", "PEBAL: outliers to the uniform distribution, no abstention"),
    Entry("default_defects", "anomseg.data.defects", "function", "the nine kinds of defects at their default strengths"),
)

BY_NAME = {entry.name: entry for entry in TABLE}


def class_path(short_name: str, kind: Kind) -> str | None:
    """Find the dotted path behind a short or full name; None where the table does not hold it."""
    for entry in TABLE:
        if entry.kind == kind and short_name in (entry.name, entry.short_name):
            return entry.class_path
    return None
