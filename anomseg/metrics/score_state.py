"""The one state under every pixel metric: exact scores while they fit, folded pages afterwards."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from anomseg.functional.kept_dtype import keeping_dtype
from anomseg.functional.score_histogram import ScoreCounts, count_scores
from anomseg.functional.score_pages import fold_scores, merge_pages, unpack_pages
from anomseg.sample import ANOMALY, IGNORE, NORMAL, check_mask

PIXELS_IN_MEMORY = 10 << 20  # 42 MB of float32 scores
PIXELS_BESIDE_PAGES = 2 << 20
VALUES_IN_MEMORY = 15 << 20  # the scores with the anomalous ones held once more, and their weights: 63 MB

_last: tuple[list[weakref.ref[Tensor]], ScoreCounts] | None = None


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread meanwhile.

    Passes over memory gain next to nothing from a second thread, and each of many short parallel loops may wait for one that another job
    holds up: 10 million pixels on two shared cores took 25 times as long with two threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def name_sample(index: int, names: Sequence[str] | None) -> str:
    """Name a sample of a batch in a message."""
    return f"sample {index} of the batch" + (f" ('{names[index]}')" if names else "")


def check_scores(score: Tensor, mask: Tensor, names: Sequence[str] | None = None) -> None:
    """Check that scores are finite wherever the mask does not say that they are ignored.

    Args:
        score: (B, H, W) raw scores.
        mask: (B, H, W) 0 normal, 1 anomaly, 255 ignored.
        names: the B scene names, for the message.

    Raises:
        ValueError: the shapes differ, or a score is NaN or infinite; the message names the sample.
    """
    if score.shape != mask.shape or score.ndim != 3:
        raise ValueError(
            f"Expected score and mask of the same shape (B, H, W), but got {tuple(score.shape)} and {tuple(mask.shape)}. "
            "Add a batch axis to a single map with [None], and drop a channel axis with [:, 0]."
        )
    wrong = ~torch.isfinite(score) & (mask != IGNORE)
    if bool(wrong.any()):
        index = int(wrong.flatten(1).any(1).nonzero()[0])
        raise ValueError(
            f"Expected finite scores, but got {int(wrong[index].sum())} NaN or infinite values in {name_sample(index, names)}. "
            "Fill pixels without data before the network (anomseg.sample.fill_nodata), or look for an overflow in `score`."
        )


class ScoreState(Metric):
    """Hold the scores of normal and anomalous pixels; subclasses read their figure from `counts()`.

    Up to 10.5 million pixels (fewer where most are anomalous) are kept as they are and counted exactly where it matters. More are folded
    into at most 2^21 cells. The answer depends on the pixels alone: not on batches, ranks or order. Memory stays below 64 MB at any
    number of pixels.
    """

    is_differentiable = False
    full_state_update = False
    scores: list[Tensor]
    anomalous: list[Tensor]
    pages: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for state in ("scores", "anomalous", "pages"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, score: Tensor, mask: Tensor, name: Sequence[str] | None = None) -> None:
        """Count a batch.

        Args:
            score: (B, H, W) raw scores of any range, higher is more anomalous.
            mask: (B, H, W) integers or bool: 0 normal, 1 anomaly, 255 ignored.
            name: the B scene names, for messages.

        Raises:
            ValueError: shapes differ, a counted score is not finite, or the mask holds another value; the message names the sample.
        """
        kept, found = select_pixels(score, mask, name)
        self._append(kept, found)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        """Move to another device as any metric does, but keep the types: pages are bit patterns, and scores would be rounded."""
        return Metric._apply(self, keeping_dtype(fn), exclude_state)

    def _append(self, scores: Tensor, anomalous: Tensor) -> None:
        if scores.numel():
            self.scores = [*state_parts(self.scores), scores]
        if anomalous.numel():
            self.anomalous = [*state_parts(self.anomalous), anomalous]
        if self._is_full(PIXELS_BESIDE_PAGES if len(self.pages) else PIXELS_IN_MEMORY):
            self._fold()

    def _is_full(self, pixels: int) -> bool:
        held = sum(s.numel() for s in state_parts(self.scores))
        copies = sum(s.numel() for s in (*state_parts(self.anomalous), *(self._weights() or [])))
        return held > pixels or held + copies > VALUES_IN_MEMORY

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        """Join the lists as torchmetrics does in `forward` and `merge_state`, and fold where they have become too long."""
        for state in self._defaults:
            setattr(self, state, [*state_parts(incoming_state[state]), *state_parts(getattr(self, state))])
        self._append(torch.empty(0), torch.empty(0))

    @one_thread()
    def _fold(self) -> None:
        folded = fold_scores(state_parts(self.scores), state_parts(self.anomalous), self._weights())
        known = [page for packed in state_parts(self.pages) for page in unpack_pages(packed)]
        self.pages = [merge_pages([*known, folded]).pack()]
        self.scores, self.anomalous = [], []
        self._forget_weights()

    def _weights(self) -> list[Tensor] | None:
        return None

    def _forget_weights(self) -> None:
        """Drop what `_weights` gave."""

    @one_thread()
    def counts(self) -> ScoreCounts:
        """Count everything seen so far; metrics that share their state share the work."""
        global _last
        scores, anomalous, pages = state_parts(self.scores), state_parts(self.anomalous), state_parts(self.pages)
        weights = self._weights()
        used = [*scores, *anomalous, *pages, *(weights or [])]
        if used and _last is not None and len(_last[0]) == len(used) and all(r() is t for r, t in zip(_last[0], used, strict=True)):
            return _last[1]
        if not pages and not self._is_full(PIXELS_IN_MEMORY):
            counted = count_scores(scores, anomalous, weights)
        else:
            parts = [page for packed in pages for page in unpack_pages(packed)]
            if scores:
                parts.append(fold_scores(scores, anomalous, weights))
            counted = merge_pages(parts).counts()
        _last = ([weakref.ref(t) for t in used], counted)
        return counted


def state_name(what: str, *arguments: float) -> str:
    """Name the state of a metric by the arguments that it depends on.

    torchmetrics (1.9) joins metrics of a collection whose states have one name and are equal after the first batch, such as both are zero:
    of two metrics at different thresholds one would be given the counts of the other.
    """
    return "_".join([what, *(str(float(argument)) for argument in arguments)]).replace(".", "_")


def state_parts(state: list[Tensor] | Tensor) -> list[Tensor]:
    """View a list state alike before a synchronisation (list) and after it (tensor)."""
    return ([state] if state.numel() else []) if isinstance(state, Tensor) else state


@one_thread()
def select_pixels(score: Tensor, mask: Tensor, name: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
    """Flatten the scores that count.

    Args:
        score: (B, H, W) raw scores.
        mask: (B, H, W) 0 normal, 1 anomaly, 255 ignored.
        name: the B scene names, for messages.

    Returns:
        1-D float32 copies of the scores of all pixels that are not ignored, and of the anomalous ones among them.

    Raises:
        ValueError: as `ScoreState.update`.
    """
    if score.shape != mask.shape or score.ndim != 3:
        check_scores(score, mask, name)
    flat = score.detach().reshape(-1).to(torch.float32)
    classes = mask.reshape(-1)
    low, high = (int(v) for v in torch.aminmax(classes)) if mask.numel() else (NORMAL, NORMAL)
    if low < NORMAL or high > IGNORE or mask.is_floating_point():
        check_mask(mask, name)  # -255, 256, 0.5 and their kind, which uint8 would make 0 or 1
    classes = classes.to(torch.uint8)
    if high > ANOMALY:
        kept = classes != IGNORE
        flat, classes = _chosen(flat, kept), _chosen(classes, kept)
        if classes.numel() and int(classes.max()) > ANOMALY:
            check_mask(mask, name)
    else:
        flat = flat + 0.0  # a copy: the caller may reuse the score
    if flat.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(flat))).all()):
        check_scores(score.detach().to(torch.float32), mask, name)
    return flat, _chosen(flat, classes.view(torch.bool))


def _chosen(flat: Tensor, wanted: Tensor) -> Tensor:
    """Index with a mask; NumPy does that four times as fast as torch on a CPU (torch 2.15)."""
    return torch.from_numpy(flat.numpy()[wanted.numpy()]) if flat.device.type == "cpu" else flat[wanted]
