import pytest
import torch

from anomseg.methods.base import AnomalySegmenter
from anomseg.methods.map_scoring import check_map, judged_truth, map_scores
from anomseg.sample import IGNORE


class Sum(AnomalySegmenter):
    learns = False
    size_multiple = 4

    def score(self, image):
        assert image.shape[-1] % 4 == 0
        return image.nan_to_num().sum(1)


def test_map_scores__pads_crops_and_gives_the_lowest_score_where_there_is_no_data():
    image = torch.rand(2, 3, 5, 7)
    image[0, 1, 2, 2], image[1] = torch.nan, torch.nan
    score = map_scores(Sum(), image)
    known = image[0].sum(0)  # NaN at one pixel
    torch.testing.assert_close(score[0], known.nan_to_num(float(known[known.isfinite()].amin())))
    assert bool((score[1] == 0).all())


def test_judged_truth__ignores_what_has_no_data_and_says_when_it_is_missing():
    image, mask = torch.rand(1, 2, 3, 3), torch.ones(1, 3, 3, dtype=torch.int64)
    image[0, 0, 1, 1] = torch.nan
    truth = judged_truth({"image": image, "mask": mask})
    assert truth[0, 1, 1] == IGNORE
    assert int((truth == 1).sum()) == 8
    assert bool((mask == 1).all())
    with pytest.raises(ValueError, match=r"Expected 'mask' .* got \['image'\]"):
        judged_truth({"image": image})


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.uint8])
def test_judged_truth__makes_no_anomaly_of_missing_data_whatever_the_type_of_the_mask(dtype):
    image, mask = torch.rand(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
    image[..., :2], mask[0, 3, 2:] = torch.nan, 1
    truth = judged_truth({"image": image, "mask": mask.to(dtype)})
    assert truth.dtype == torch.int64
    assert torch.equal(truth, judged_truth({"image": image, "mask": mask}))


def test_check_map__names_the_scene_of_a_score_that_is_not_finite():
    image, score = torch.rand(2, 1, 3, 3), torch.rand(2, 3, 3)
    image[0, 0, 0, 0], score[0, 0, 0] = torch.nan, torch.nan
    check_map(score, {"image": image})
    score[1, 2, 2] = torch.inf
    with pytest.raises(ValueError, match=r"1 NaN or infinite values in .*b"):
        check_map(score, {"image": image, "name": ["a", "b"]})
