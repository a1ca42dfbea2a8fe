import pytest
import torch

from anomseg.methods.reconstruction_masking import MaskedPrediction
from anomseg.nets.autoencoder import AutoencoderSpec
from anomseg.nets.autoencoder_contract import PLACES, Rebuilt


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("cell", [1, 2, 8, 64])
@pytest.mark.parametrize("masks", [2, 3])
def test_masks__cover_every_pixel_exactly_once(cell, masks):
    hidden = MaskedPrediction((cell,), masks).draw(3, (17, 26), cell, generator())
    assert hidden.shape == (masks, 3, 17, 26)
    assert (hidden.sum(0) == 1).all()


def test_masks__share_the_cells_evenly_and_differ_between_images_and_draws():
    prediction = MaskedPrediction((4,))
    hidden = prediction.draw(2, (24, 24), 4, generator())
    assert (hidden.sum((2, 3)) == 24 * 24 // 3).all()
    assert not torch.equal(hidden[:, 0], hidden[:, 1])
    assert torch.equal(hidden, prediction.draw(2, (24, 24), 4, generator()))
    assert not torch.equal(hidden, prediction.draw(2, (24, 24), 4, generator(1)))
    blocks = hidden.unflatten(2, (6, 4)).unflatten(4, (6, 4))
    assert (blocks.float().mean((3, 5)) % 1 == 0).all()


def test_prediction__of_a_pixel_never_sees_its_value():
    torch.manual_seed(0)
    net = AutoencoderSpec(width=4, depth=1, skips="all").build(2, PLACES).eval()
    image, place = torch.randn(1, 2, 12, 12), torch.rand(1, PLACES, 12, 12)
    prediction = MaskedPrediction((2,))
    hidden = prediction.draw(1, (12, 12), 2, generator())
    before = prediction.predict(net, image, place, hidden).image
    changed = image.clone()
    changed[0, :, 5, 6] += 10
    after = prediction.predict(net, changed, place, hidden).image
    assert torch.equal(before[0, :, 5, 6], after[0, :, 5, 6])
    assert not torch.equal(before, after)


def test_prediction__by_a_net_that_copies_is_zero_everywhere():
    image = torch.randn(2, 1, 9, 9)
    prediction = MaskedPrediction((3,))
    rebuilt = prediction.predict(lambda seen, _: Rebuilt(seen, seen), image, None, prediction.draw(2, (9, 9), 3, generator()))
    assert (rebuilt.image == 0).all()


def test_prediction__by_shared_masks_is_that_of_each_image_alone():
    torch.manual_seed(0)
    net = AutoencoderSpec(width=4, depth=1).build(1).eval()
    prediction, images = MaskedPrediction((3,)), torch.randn(2, 1, 9, 9)
    hidden = prediction.draw(1, (9, 9), 3, generator())
    together = prediction.predict(net, images, None, hidden).image
    for image, expected in zip(images, together, strict=True):
        torch.testing.assert_close(prediction.predict(net, image[None], None, hidden).image[0], expected)


@pytest.mark.parametrize("options", [{"cells": ()}, {"cells": (0,)}, {"masks": 1}])
def test_masked_prediction__refuses_what_hides_nothing(options):
    with pytest.raises(ValueError, match="Expected"):
        MaskedPrediction(**options)
