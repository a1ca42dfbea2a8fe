import pytest
import torch

from anomseg.methods.reconstruction_inputs import ReconstructionInputs
from anomseg.methods.reconstruction_score import ReconstructionScore, combined, robust_spread, score_terms
from anomseg.nets.autoencoder_contract import Rebuilt, at_pixels
from anomseg.nets.autoencoder_features import RandomFeatures

ALL = ReconstructionScore(l1=1, l2=1, ssim=1, msgms=1, features=1, levels=1, level_error=1, defect=1)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fitted():
    inputs = ReconstructionInputs(2)
    inputs.fit([(noise(4, 2, 16, 18), torch.ones(4, 16, 18, dtype=torch.bool))])
    return inputs


def terms(target, image, valid=None, scoring=ALL):
    levels, logits = (noise(1, 5, 4, 5, seed=3),), noise(1, 16, 18, seed=4)
    valid = torch.ones(1, 16, 18, dtype=torch.bool) if valid is None else valid
    rebuilt = Rebuilt(image, image, levels, tuple(-one for one in levels))
    return score_terms(target, rebuilt, logits, valid, scoring, fitted(), RandomFeatures(2), 4)


def test_terms__stand_in_their_order_and_are_higher_where_images_differ():
    target = noise(1, 2, 16, 18, seed=1)
    image = target.clone()
    image[:, :, 2:6, 3:8] = 3.0
    found = terms(target, image)
    assert found.shape == (1, 8, 16, 18)
    pixel = found[0, :5]
    assert (pixel[:, 3:5, 4:7].mean((1, 2)) > pixel[:, 12:, 14:].mean((1, 2)) + 0.01).all()
    assert (pixel[[0, 1], 12:, 14:] == 0).all()
    torch.testing.assert_close(found[0, 5], torch.full((16, 18), 2.0))
    squares = 4 * noise(1, 5, 4, 5, seed=3).square().mean(1)  # rebuilt as their opposites, all differ by twice their size
    torch.testing.assert_close(found[:, 6], at_pixels(squares, (16, 18), 4))
    assert torch.equal(found[0, 7], noise(1, 16, 18, seed=4)[0])
    assert torch.equal(terms(target, image, scoring=ReconstructionScore(l1=0, msgms=0, l2=1, defect=1)), found[:, [1, 7]])


def test_terms__do_not_read_what_was_rebuilt_in_the_place_of_void():
    target, image, valid = noise(1, 2, 16, 18, seed=1), noise(1, 2, 16, 18, seed=2), noise(1, 16, 18, seed=5) > -1
    target = torch.where(valid[:, None], target, 0.0)
    poisoned = torch.where(valid[:, None], image, torch.nan)
    assert torch.equal(terms(target, image, valid)[:, :, valid[0]], terms(target, poisoned, valid)[:, :, valid[0]])


def test_spread__is_that_of_a_gaussian_and_not_moved_by_a_few_outliers():
    samples = 5 + 3 * noise(20001, 1)
    centre, scale = robust_spread(samples)
    assert (centre - 5).abs() < 0.1
    assert (scale - 3).abs() < 0.1
    samples[:200] = 1e6
    assert (robust_spread(samples)[1] - 3).abs() < 0.1


def test_spread__of_terms_that_hardly_vary_is_never_zero():
    samples = torch.zeros(100, 2)
    samples[:10, 1] = 1.0
    centre, scale = robust_spread(samples)
    assert centre.tolist() == [0.0, 0.0]
    torch.testing.assert_close(scale, torch.tensor([1.0, 0.3]))


def test_combined__weighs_standardised_terms():
    scoring = ReconstructionScore(l1=2.0, l2=0.5, msgms=0.0, smoothing=0.0)
    raw = noise(1, 2, 4, 5)
    found = combined(raw, torch.ones(1, 4, 5, dtype=torch.bool), torch.tensor([1.0, 2.0]), torch.tensor([4.0, 0.5]), scoring)
    torch.testing.assert_close(found, 2 * (raw[:, 0] - 1) / 4 + 0.5 * (raw[:, 1] - 2) / 0.5)


def test_combined__pools_only_valid_pixels():
    scoring = ReconstructionScore(msgms=0.0, pooling=(3,), smoothing=0.0)
    raw, valid = noise(1, 1, 4, 5), torch.ones(1, 4, 5, dtype=torch.bool)
    valid[0, 1, 1] = False
    raw[0, 0, 1, 1] = 1e6
    found = combined(raw, valid, torch.zeros(1), torch.ones(1), scoring)
    corner = raw[0, 0, [0, 0, 1], [0, 1, 0]].mean()
    torch.testing.assert_close(found[0, 0, 0], corner)
    torch.testing.assert_close(found[0, 2, 3], raw[0, 0, 1:4, 2:5].mean())
    assert found[0, 1, 1] == 0


def test_combined__keeps_a_constant_and_averages_windows():
    scoring = ReconstructionScore(msgms=0.0, pooling=(1, 3, 9), smoothing=2.0)
    valid = noise(1, 9, 9) > -1
    found = combined(torch.full((1, 1, 9, 9), 7.0), valid, torch.zeros(1), torch.ones(1), scoring)
    torch.testing.assert_close(found, 7.0 * valid)


@pytest.mark.parametrize("options", [{"l1": 0.0, "msgms": 0.0}, {"l2": -1.0}, {"pooling": (2,)}, {"pooling": ()}, {"smoothing": -1.0}])
def test_score__refuses_a_constant_and_what_it_cannot_pool(options):
    with pytest.raises(ValueError, match="Expected"):
        ReconstructionScore(**options)
