import pytest
import torch

from anomseg.nets.autoencoder_features import RandomFeatures, feature_distance


def image(bands=2, size=(13, 10)):
    return torch.randn(2, bands, *size, generator=torch.Generator().manual_seed(1))


def test_random_features__depend_on_the_seed_alone():
    torch.manual_seed(5)
    a = RandomFeatures(2, seed=3)(image())
    torch.manual_seed(6)
    b, c = RandomFeatures(2, seed=3)(image()), RandomFeatures(2, seed=4)(image())
    assert all(torch.equal(one, other) for one, other in zip(a, b, strict=True))
    assert not torch.equal(a[0], c[0])
    assert [tuple(one.shape) for one in a] == [(2, 16, 13, 10), (2, 32, 7, 5), (2, 64, 4, 3)]


def test_random_features__never_learn_but_pass_gradients_to_the_image():
    net, x = RandomFeatures(2), image().requires_grad_()
    feature_distance(net(x), net(image() * 0), (13, 10)).mean().backward()
    assert x.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in net.parameters())


def test_random_features__keep_the_scale_of_the_image():
    coarse = torch.randn(1, 10, 4, 4, generator=torch.Generator().manual_seed(0))
    for one in RandomFeatures(10)(coarse.repeat_interleave(16, 2).repeat_interleave(16, 3)):
        assert 0.2 < one.square().mean() < 4


def test_feature_distance__is_zero_for_equal_images_and_the_mean_square_of_one_stage():
    net = RandomFeatures(2)
    a, b = net(image()), net(image().flip(2))
    assert (feature_distance(a, a, (13, 10)) == 0).all()
    torch.testing.assert_close(feature_distance(a[:1], b[:1], (13, 10)), (a[0] - b[0]).square().mean(1))


def test_random_features__refuse_an_empty_net():
    with pytest.raises(ValueError, match="stages"):
        RandomFeatures(1, stages=0)
