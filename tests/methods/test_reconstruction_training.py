import pytest
import torch

from anomseg.functional.similarity import ssim_loss
from anomseg.methods.reconstruction_inputs import ReconstructionInputs
from anomseg.methods.reconstruction_training import ReconstructionLoss, reconstruction_losses
from anomseg.nets.autoencoder_contract import Rebuilt
from anomseg.nets.autoencoder_features import RandomFeatures

ALL = ReconstructionLoss(l1=1, l2=1, ssim=1, msgms=1, edges=1, features=1, levels=1, focal=1, focus=3)


def fitted():
    inputs = ReconstructionInputs(2)
    image = torch.randn(4, 2, 16, 18, generator=torch.Generator().manual_seed(0))
    inputs.fit([(image, torch.ones(4, 16, 18, dtype=torch.bool))])
    return inputs


def batch():
    g = torch.Generator().manual_seed(1)
    target, image = torch.randn(2, 2, 16, 18, generator=g), torch.randn(2, 2, 16, 18, generator=g)
    levels = torch.randn(2, 5, 4, 5, generator=g), torch.randn(2, 5, 4, 5, generator=g)
    valid = torch.rand(2, 16, 18, generator=g) > 0.2
    defect = (torch.rand(2, 16, 18, generator=g) > 0.8).long()
    return torch.where(valid[:, None], target, 0.0), image, levels, valid, defect, torch.randn(2, 16, 18, generator=g)


def losses(recipe=ALL, poison=None, defect=True, image=None):
    target, first, (targets, levels), valid, marks, logits = batch()
    image = first if image is None else image
    if poison is not None:
        image, logits = torch.where(valid[:, None], image, poison), torch.where(valid, logits, poison)
    rebuilt = Rebuilt(image, image, (targets,), (levels,))
    marks = torch.where(valid, marks, 255) if defect else None
    return reconstruction_losses(target, rebuilt, valid, marks, logits, recipe, fitted(), RandomFeatures(2), 4)


def test_losses__are_all_there_finite_and_weighed():
    once, twice = losses(), losses(ReconstructionLoss(l1=2, l2=2, ssim=2, msgms=2, edges=2, features=2, levels=2, focal=2, focus=3))
    assert set(once) == {"l1", "l2", "ssim", "msgms", "edges", "features", "levels", "focal"}
    for name, value in once.items():
        assert value > 0
        torch.testing.assert_close(twice[name], 2 * value)
    assert set(losses(ReconstructionLoss(l2=0, ssim=0, l1=1, levels=0, focal=0))) == {"l1"}


@pytest.mark.parametrize("poison", [50.0, float("nan"), float("inf")])
def test_losses__are_blind_to_void_pixels(poison):
    clean, poisoned = losses(), losses(poison=poison)
    assert all(torch.equal(clean[name], poisoned[name]) for name in clean)


def test_losses__of_a_perfect_reconstruction_are_zero_but_for_features_and_defects():
    found = losses(image=batch()[0])
    assert all(found[name] == 0 for name in ("l1", "l2", "ssim", "msgms", "edges", "features"))


def test_focus__weighs_corrupted_pixels_more():
    target, image, _, valid, defect, _ = batch()
    weight = valid * (1 + 3.0 * defect)
    expected = ((image - target).square().mean(1) * weight).sum() / weight.sum()
    torch.testing.assert_close(losses()["l2"], expected)
    plain = ((image - target).square().mean(1) * valid).sum() / valid.sum()
    torch.testing.assert_close(losses(defect=False)["l2"], plain)


def test_ssim__counts_in_the_range_of_the_training_images():
    target, image, _, valid, _, _ = batch()
    inputs = fitted()
    unit, other = inputs.in_unit_range(image), inputs.in_unit_range(target)
    torch.testing.assert_close(losses()["ssim"], ssim_loss(unit, other, valid=valid))
    target[0, 0, 3, 3] = 1e3  # brighter than anything at the time of fitting: cut, and no error
    rebuilt = Rebuilt(image, image)
    assert torch.isfinite(reconstruction_losses(target, rebuilt, valid, None, None, ReconstructionLoss(), inputs)["ssim"])


@pytest.mark.parametrize("arguments", [{"l1": -1.0}, {"l2": 0.0, "ssim": 0.0}, {"feature_net": "vgg"}])
def test_loss__refuses_what_rebuilds_no_image(arguments):
    with pytest.raises(ValueError, match="Expected"):
        ReconstructionLoss(**arguments)
