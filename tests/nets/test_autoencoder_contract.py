import torch

from anomseg.nets.autoencoder import AutoencoderSpec
from anomseg.nets.autoencoder_contract import at_pixels, on_grid, place_maps


def test_place_maps__are_antisymmetric_and_near_one_at_the_border():
    across, down, rim = place_maps((4, 6), reach=2.0)
    torch.testing.assert_close(across, -across.flip(1))
    torch.testing.assert_close(down, -down.flip(0))
    assert across.abs().max() < 1
    assert rim.tolist() == [[1.0] * 6, [1.0, 0.5, 0.5, 0.5, 0.5, 1.0], [1.0, 0.5, 0.5, 0.5, 0.5, 1.0], [1.0] * 6]


def test_place_maps__of_a_part_are_that_part_of_the_whole():
    whole = place_maps((20, 30), reach=8.0)
    torch.testing.assert_close(place_maps((5, 7), 8.0, (10, 21), (20, 30)), whole[:, 10:15, 21:28])


def test_follower__shares_what_is_frozen_and_copies_the_rest():
    net = AutoencoderSpec(width=2, depth=1).build(1)
    net.net.code.requires_grad_(False)
    twin = net.follower()
    assert twin.net.code.weight is net.net.code.weight
    assert twin.net.last.weight is not net.net.last.weight
    assert torch.equal(twin.net.last.weight, net.net.last.weight)
    assert not any(p.requires_grad for p in twin.parameters())
    assert net.net.last.weight.requires_grad


def test_on_grid__counts_valid_pixels_and_nothing_beyond_the_image():
    valid = torch.ones(1, 3, 5, dtype=torch.bool)
    valid[0, 0, 0] = False
    assert on_grid(valid, (2, 4), 2)[0].tolist() == [[0.75, 1.0, 0.5, 0.0], [0.5, 0.5, 0.25, 0.0]]


def test_at_pixels__keeps_constants_and_crops():
    assert (at_pixels(torch.full((1, 3, 3), 4.0), (9, 11), 4) == 4).all()
    points = torch.arange(6.0).view(1, 2, 3)
    torch.testing.assert_close(on_grid(torch.ones(1, 8, 12), (2, 3), 4), torch.ones(1, 2, 3))
    assert at_pixels(points, (2, 2), 1).tolist() == [[[0.0, 1.0], [3.0, 4.0]]]
    assert (at_pixels(points, (8, 12), 4).diff(dim=2) >= 0).all()
