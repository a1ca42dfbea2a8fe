"""Say which classes of a labelled image are normal: the protocol that turns land cover into anomaly detection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anomseg.errors import SceneFormatError
from anomseg.sample import ANOMALY, IGNORE, NORMAL

NO_CLASS = -1
"""The id of a pixel whose class is not known, in maps of class ids."""


@dataclass(frozen=True)
class ClassTable:
    """Name the classes of a data set, their ids and their colours.

    Attributes:
        names: the classes.
        ids: stored id of each; by default 0, 1, 2, ... in the order of the names.
        colours: stored (red, green, blue) of each, 0 to 255, where masks are pictures; by default none.
        void: names whose pixels never count, such as "unknown".
    """

    names: tuple[str, ...]
    ids: tuple[int, ...] | None = None
    colours: tuple[tuple[int, int, int], ...] | None = None
    void: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what, values in (("names", self.names), ("ids", self.class_ids), ("colours", self.colours or self.names)):
            if len(values) != len(self.names) or len(set(values)) < len(values):
                raise ValueError(f"Expected {len(self.names)} different {what}, one a class of {self.names}, but got {values}.")
        unknown = sorted(set(self.void) - set(self.names))
        if unknown or not self.names or min(self.class_ids) < 0:
            raise ValueError(
                f"Expected names, ids of at least 0, and void classes among {self.names}, but got ids {self.class_ids} and {unknown}."
            )

    @property
    def class_ids(self) -> tuple[int, ...]:
        """Give the id of each class, in the order of the names."""
        return tuple(range(len(self.names))) if self.ids is None else tuple(self.ids)

    def id_of(self, chosen: int | str) -> int:
        """Find the id of a class.

        Args:
            chosen: its name, or its id.

        Raises:
            ValueError: the table does not hold it.
        """
        known = dict(zip(self.names, self.class_ids, strict=True))
        if chosen in known:
            return known[str(chosen)]
        if chosen in known.values():
            return int(chosen)
        raise ValueError(f"Expected classes among {known}, but got {chosen!r}. Use these names or ids.")

    def found_in(self, ids: Tensor) -> tuple[str, ...]:
        """Name the classes that a map of ids holds, in the order of the table."""
        present = _present(ids)
        return tuple(name for name, number in zip(self.names, self.class_ids, strict=True) if number in present)

    def check(self, ids: Tensor, source: object) -> None:
        """Check that a map holds no id that the table does not know.

        Args:
            ids: (H, W) integers, `NO_CLASS` where the class is not known.
            source: the file, for the message.

        Raises:
            SceneFormatError: it does; the message lists these ids.
        """
        strange = sorted(_present(ids) - {*self.class_ids, NO_CLASS})
        if strange:
            known = dict(zip(self.class_ids, self.names, strict=True))
            raise SceneFormatError(
                f"Expected the class ids {known} in '{source}', but got also {strange[:16]}. "
                "Add them to the class table, or choose the layout that the masks were written for."
            )

    def ids_of_colours(self, picture: Tensor, source: object) -> Tensor:
        """Look the colours of a mask up.

        Args:
            picture: (3, H, W) integers 0 to 255.
            source: the file, for the message.

        Returns:
            (H, W) int64 class ids.

        Raises:
            SceneFormatError: the table has no colours, or does not know one; the message lists such colours.
        """
        if self.colours is None:
            raise SceneFormatError(f"Expected a class table with colours to read '{source}', but it has none. Give them, or use ids.")
        packed = _packed(picture.long())
        ids = torch.full_like(packed, NO_CLASS)
        unseen = torch.ones_like(packed, dtype=torch.bool)
        for number, colour in zip(self.class_ids, self.colours, strict=True):  # one pass a class: sorting all pixels costs more
            hit = packed == _packed(torch.tensor(colour))
            ids[hit] = number
            unseen &= ~hit
        if bool(unseen.any()):
            strange = [(int(c) >> 16, int(c) >> 8 & 255, int(c) & 255) for c in torch.unique(packed[unseen])[:8]]
            raise SceneFormatError(
                f"Expected the colours {dict(zip(self.names, self.colours, strict=True))} in '{source}', but got also {strange} "
                f"({int(unseen.sum())} pixels). Add them to the class table; lossy compression blurs colours, so store masks as PNG."
            )
        return ids


def _present(ids: Tensor) -> set[int]:
    if ids.numel() and int(ids.max()) < 2**16 and int(ids.min()) >= NO_CLASS:
        return set((torch.bincount(ids.flatten() + 1).nonzero()[:, 0] - 1).tolist())  # counting is ten times faster than sorting
    return set(torch.unique(ids).tolist())


def _packed(colour: Tensor) -> Tensor:
    red, green, blue = colour.long()
    packed: Tensor = (red << 16) | (green << 8) | blue
    return packed


BINARY = ClassTable(("background", "object"))
"""The two classes of black and white masks: 0 black, 1 white."""


@dataclass(frozen=True)
class ClassAsNormal:
    """Choose what is normal: pixels of these classes become 0, ignored ones 255, everything else 1.

    Training images keep their anomalous pixels as 1: methods leave them out themselves.

    Attributes:
        normal_classes: names or ids, at least one.
        ignore_classes: names or ids, beside the void ones of the class table.
    """

    normal_classes: tuple[int | str, ...] = (0,)
    ignore_classes: tuple[int | str, ...] = ()

    def __post_init__(self) -> None:
        both = sorted(map(str, set(self.normal_classes) & set(self.ignore_classes)))
        if not self.normal_classes or both:
            raise ValueError(
                f"Expected at least one normal class that is not ignored, but got normal_classes={self.normal_classes} and "
                f"ignore_classes={self.ignore_classes}. Take {both or 'a class of the table'} once."
            )

    def ids(self, table: ClassTable) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Look the classes up.

        Args:
            table: the classes of the data set.

        Returns:
            Ids of the normal classes, and of those that are ignored.

        Raises:
            ValueError: the table does not hold a class, or a normal class is one of its void ones or ignored.
        """
        normal = tuple(table.id_of(chosen) for chosen in self.normal_classes)
        ignored = tuple(table.id_of(chosen) for chosen in (*self.ignore_classes, *table.void))
        if set(normal) & set(ignored):
            raise ValueError(
                f"Expected normal classes that count, but got {self.normal_classes} with {(*self.ignore_classes, *table.void)} ignored. "
                "Choose others."
            )
        return normal, ignored

    def mask(self, ids: Tensor, table: ClassTable) -> Tensor:
        """Apply the rule to a map of class ids.

        Args:
            ids: (H, W) int64, `NO_CLASS` where the class is not known.
            table: the classes of the data set.

        Returns:
            (H, W) int64 of 0, 1, 255.
        """
        normal, ignored = self.ids(table)
        last = max(table.class_ids) + 1
        value_of = torch.full((last + 2,), ANOMALY)  # from NO_CLASS at index 0 to the first id beyond the table
        value_of[torch.tensor(normal) + 1] = NORMAL
        value_of[torch.tensor([*ignored, NO_CLASS]) + 1] = IGNORE
        return torch.take(value_of, ids.clamp(NO_CLASS, last) + 1)

    def mask_of_layers(self, layers: Mapping[str, Tensor], table: ClassTable) -> Tensor:
        """Apply the rule where classes lie in layers of their own and may overlap.

        The first class of the table is the background, which holds where no layer does. Where a normal class and another one overlap,
        the pixel is normal; where an ignored class lies, it is ignored.

        Args:
            layers: (H, W) bool for each class that has one, at least one.
            table: the classes of the data set.

        Returns:
            (H, W) int64 of 0, 1, 255.
        """
        full = with_background(layers, table)
        name_of = dict(zip(table.class_ids, table.names, strict=True))
        normal, ignored = ([full[name_of[number]] for number in numbers if name_of[number] in full] for numbers in self.ids(table))
        mask = torch.full(next(iter(full.values())).shape, ANOMALY, dtype=torch.int64)
        mask[_any(normal, mask.shape)] = NORMAL
        mask[_any(ignored, mask.shape)] = IGNORE
        return mask


def with_background(layers: Mapping[str, Tensor], table: ClassTable) -> dict[str, Tensor]:
    """Add the background, the first class of the table, which holds where no layer does.

    Args:
        layers: (H, W) bool for each class that has one, at least one.
        table: the classes of the data set.

    Returns:
        The layers, with that of the background before them unless it has one of its own.
    """
    elsewhere = ~_any(list(layers.values()), next(iter(layers.values())).shape)
    return {table.names[0]: elsewhere, **layers}


def _any(layers: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    return torch.stack(list(layers)).any(dim=0) if layers else torch.zeros(tuple(shape), dtype=torch.bool)


@dataclass(frozen=True)
class IndexThreshold:
    """Derive two classes from the image itself by a normalised difference of two bands.

    Class 1, "above", where (a - b) / (a + b) exceeds the threshold, class 0, "below", elsewhere. With a = green and b = near infrared
    this is the water index NDWI: ``ClassAsNormal(("below",))`` makes land normal and water anomalous. Such a truth can only be as good
    as the index, and a detector that sees both bands can learn it exactly.

    Attributes:
        bands: indices a and b from 0, in the bands of the file.
        threshold: -1 to 1.

    Source:
        McFeeters, "The use of the Normalized Difference Water Index (NDWI) in the delineation of open water features", Int. J. Remote
        Sens. 17(7), 1996.
    """

    bands: tuple[int, int]
    threshold: float = 0.0

    def ids(self, image: Tensor) -> Tensor:
        """Threshold the index.

        Args:
            image: (C, H, W) float, NaN where there is no data.

        Returns:
            (H, W) int64 of 0 and 1, `NO_CLASS` where there is no data or both bands are 0.

        Raises:
            ValueError: the image lacks one of the bands.
        """
        if min(self.bands) < 0 or max(self.bands) >= len(image):
            raise ValueError(f"Expected two bands of 0 to {len(image) - 1} for the index, but got {self.bands}. Count them from 0.")
        first, second = image[self.bands[0]].double(), image[self.bands[1]].double()
        index = (first - second) / (first + second)
        ids = (index > self.threshold).long()
        return ids.masked_fill(~torch.isfinite(index) | ~torch.isfinite(image).all(dim=0), NO_CLASS)


DERIVED = ClassTable(("below", "above"))
"""The two classes of `IndexThreshold`."""
