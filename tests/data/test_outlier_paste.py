import pytest
import torch

from anomseg.config import build, describe
from anomseg.data.outlier_paste import OutlierPaste
from anomseg.data.outlier_sources import OutlierSource, SyntheticOutliers


class Square(OutlierSource):
    """A white square, half of it seen through on demand."""

    def __init__(self, shape=(20, 20), seen=1.0):
        self.shape, self.seen = shape, seen

    def draw(self, generator):
        return torch.cat([torch.ones(3, *self.shape), torch.full((1, *self.shape), self.seen)])


PLAIN = {"probability": 1.0, "count": (1, 1), "size": (0.3, 0.3), "colour": 0.0, "blur": 0.0}


def frame(size=(60, 80), label=2):
    image = torch.zeros(3, *size)
    return {"image": image, "mask": torch.zeros(size, dtype=torch.int64), "label": torch.full(size, label), "name": "one"}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_paste__marks_exactly_the_pixels_of_the_object():
    pasted = OutlierPaste((Square(),), **PLAIN)(frame(), seeded())
    white = (pasted["image"] == 1).all(0)
    assert torch.equal(pasted["mask"] == 1, white)
    assert torch.equal(pasted["label"] == 255, white)
    assert int(white.sum()) == 18 * 18  # three tenths of 60 rows
    assert pasted["name"] == "one"


def test_paste__leaves_the_sample_that_came_untouched():
    sample = frame()
    OutlierPaste((Square(),), **PLAIN)(sample, seeded())
    assert not bool(sample["image"].any())
    assert not bool(sample["mask"].any())


def test_paste__is_decided_by_the_generator():
    paste = OutlierPaste((SyntheticOutliers(),), 1.0, (1, 3), turn=30.0)
    first, again, other = (paste(frame(), seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["mask"], again["mask"])
    assert not torch.equal(first["mask"], other["mask"])


def test_paste__takes_a_share_of_the_samples():
    paste = OutlierPaste((Square(),), **{**PLAIN, "probability": 0.3})
    generator = seeded()
    share = sum(bool((paste(frame(), generator)["mask"] == 1).any()) for _ in range(400)) / 400
    assert 0.23 < share < 0.37
    clean = frame()
    assert OutlierPaste((Square(),), probability=0.0)(clean, generator) is clean


def test_paste__spreads_sizes_evenly_by_their_logarithm():
    paste = OutlierPaste((Square(),), **{**PLAIN, "size": (0.1, 0.4)})
    generator = seeded()
    heights = torch.tensor([float((paste(frame((200, 400)), generator)["mask"] == 1).any(1).sum()) for _ in range(300)])
    assert 19 <= float(heights.min()) <= 24
    assert 74 <= float(heights.max()) <= 81
    assert 35 < float(heights.median()) < 46  # the geometric middle, 40


def test_paste__puts_the_foot_of_an_object_on_the_road():
    sample = frame()
    sample["label"][:40], sample["label"][40:] = 1, 7
    paste = OutlierPaste((Square(),), **PLAIN, position="on_road", road=(7,))
    for seed in range(20):
        rows = (paste(sample, seeded(seed))["mask"] == 1).any(1).nonzero()
        assert int(rows.max()) >= 40
    sample["label"][:] = 1
    assert not bool(paste(sample, seeded())["mask"].any())  # no road: the sample stays clean


def test_paste__on_the_road_needs_labels():
    sample = frame()
    del sample["label"]
    with pytest.raises(ValueError, match="anywhere"):
        OutlierPaste((Square(),), **PLAIN, position="on_road", road=(7,))(sample, seeded())
    assert "label" not in OutlierPaste((Square(),), **PLAIN)(sample, seeded())


def test_paste__keeps_pixels_without_data():
    sample = frame()
    sample["image"][:, :, ::2] = torch.nan
    pasted = OutlierPaste((Square(),), **PLAIN)(sample, seeded())
    assert torch.equal(pasted["image"].isnan(), sample["image"].isnan())
    assert not bool((pasted["mask"] == 1)[:, ::2].any())
    sample["image"][:] = torch.nan
    assert not bool(OutlierPaste((Square(),), **PLAIN)(sample, seeded())["mask"].any())


def test_paste__of_what_is_barely_seen_leaves_the_sample_clean():
    pasted = OutlierPaste((Square(seen=0.2),), **{**PLAIN, "edge": "hard"})(frame(), seeded())
    assert not bool(pasted["mask"].any())
    assert not bool(pasted["image"].any())


def test_paste__shrinks_objects_that_are_wider_than_the_frame():
    pasted = OutlierPaste((Square((10, 100)),), **{**PLAIN, "size": (1.0, 1.0)})(frame(), seeded())
    columns = (pasted["mask"] == 1).any(0)
    assert 60 <= int(columns.sum()) <= 80


def test_paste__turns_objects_without_changing_their_area():
    areas = []
    for turn in (0.0, 45.0):
        pasted = OutlierPaste((Square((40, 40)),), **{**PLAIN, "size": (0.5, 0.5)}, turn=turn)(frame((200, 200)), seeded(8))
        area = (pasted["mask"] == 1).sum() / (pasted["mask"] == 1).any(1).sum() ** 2
        areas.append(float(area))
    assert areas[0] == pytest.approx(1.0)
    assert 0.45 < areas[1] < 0.99  # a turned square fills less of its own box
    level = OutlierPaste((Square((40, 40)),), **PLAIN, turn=1e-6)(frame((200, 200)), seeded(8))
    assert (level["mask"] == 1).sum() == pytest.approx(3600, rel=0.1)


def test_paste__blends_soft_edges_and_cuts_hard_ones():
    found = {}
    for edge in ("soft", "hard"):
        pasted = OutlierPaste((SyntheticOutliers(),), **{**PLAIN, "size": (0.35, 0.35)}, edge=edge)(frame(), seeded(1))
        found[edge] = pasted
    assert not bool(((found["hard"]["image"] > 0).any(0) & (found["hard"]["mask"] == 0)).any())
    assert bool(((found["soft"]["image"] > 0).any(0) & (found["soft"]["mask"] == 0)).any())


def test_paste__is_plain_data_and_back():
    paste = OutlierPaste((SyntheticOutliers(48),), 0.7, edge="hard", turn=10.0)
    again = build(describe(paste))
    assert torch.equal(paste(frame(), seeded())["image"], again(frame(), seeded())["image"])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sources": ()}, "SyntheticOutliers"),
        ({"probability": 1.5}, "probability in"),
        ({"count": (2, 1)}, "count"),
        ({"size": (0.0, 0.5)}, "size"),
        ({"edge": "round"}, "edge 'hard' or 'soft'"),
        ({"position": "on_road"}, "road="),
        ({"turn": 200.0}, "180 degrees"),
    ],
)
def test_paste__refuses_arguments_out_of_range(wrong, said):
    with pytest.raises(ValueError, match=said):
        OutlierPaste(**{"sources": (SyntheticOutliers(),), **wrong})


def test_paste__wants_three_bands():
    with pytest.raises(ValueError, match=r"\(3, H, W\)"):
        OutlierPaste((Square(),), **PLAIN)({**frame(), "image": torch.zeros(4, 60, 80)}, seeded())
