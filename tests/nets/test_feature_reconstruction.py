import pytest
import torch

from anomseg.functional.similarity import loose_cosine_loss
from anomseg.nets.autoencoder_contract import PLACES, place_maps
from anomseg.nets.feature_reconstruction import FeatureReconstructionSpec, LinearAttentionBlock


def toy(bands=2, places=0, **options):
    torch.manual_seed(0)
    return FeatureReconstructionSpec(**{"width": 16, "depth": 1, **options}).build(bands, places)


def image(bands=2, size=(24, 32), batch=2):
    return torch.randn(batch, bands, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("decoder", ["linear_attention", "convolution"])
@pytest.mark.parametrize("encoder", ["random", "resnet18"])
def test_net__learns_everywhere_but_in_its_encoder(decoder, encoder):
    net = toy(encoder=encoder, decoder=decoder)
    before = {name: value.clone() for name, value in net.encoder.state_dict().items()}
    rebuilt = net(image())
    loss = sum(loose_cosine_loss(a, b, torch.ones(2, *a.shape[-2:])) for a, b in zip(rebuilt.levels, rebuilt.targets, strict=True))
    (loss + rebuilt.image.square().mean()).backward()
    assert all(torch.equal(value, before[name]) for name, value in net.encoder.state_dict().items())
    assert [name for name, p in net.named_parameters() if (p.grad is None) != name.startswith("encoder")] == []


@pytest.mark.parametrize("bands", [1, 3, 10])
@pytest.mark.parametrize("size", [(24, 32), (17, 9), (3, 3)])
@pytest.mark.parametrize("encoder", ["random", "resnet18"])
def test_net__takes_any_bands_and_size_and_a_batch_of_one(bands, size, encoder):
    net = toy(bands, encoder=encoder, levels=(0, 1, 2))
    rebuilt = net(image(bands, size, 1))
    assert rebuilt.image.shape == (1, bands, *size)
    assert rebuilt.levels[0].shape == rebuilt.targets[0].shape


def test_net__groups_its_levels():
    net = toy(groups=(1, 2))
    rebuilt = net(image())
    assert [one.shape[1] for one in rebuilt.levels] == [32, 64 + 128]
    assert rebuilt.levels[0].shape[-2:] == (6, 8)


def test_net__rebuilds_the_features_of_the_clean_image():
    net = toy().eval()
    x, clean = image(), image().flip(3)
    rebuilt = net(x, clean=clean)
    torch.testing.assert_close(rebuilt.targets[0], net(clean).targets[0])
    torch.testing.assert_close(rebuilt.levels[0], net(x).levels[0])


def test_net__standardises_its_targets():
    net, x = toy(), image(batch=8)
    raw = net.raw_features(x)
    net.fit(raw.mean((0, 2, 3)), raw.std((0, 2, 3)))
    target = net(x).targets[0]
    torch.testing.assert_close(target.mean((0, 2, 3)), torch.zeros(224), atol=1e-4, rtol=0)
    torch.testing.assert_close(target.std((0, 2, 3)), torch.ones(224), atol=1e-3, rtol=0)


def test_net__is_noisy_in_training_alone_and_its_encoder_never():
    net, x = toy(encoder="resnet18"), image()
    assert not net.encoder.training
    a, b = net(x), net(x)
    assert not torch.equal(a.levels[0], b.levels[0])
    assert torch.equal(a.targets[0], b.targets[0])
    net.eval()
    assert torch.equal(net(x).levels[0], net(x).levels[0])


def test_net__is_told_its_places():
    net, x = toy(places=PLACES).eval(), image(size=(21, 30))
    place = place_maps((21, 30), 4.0).expand(2, -1, -1, -1)
    assert not torch.equal(net(x, place).levels[0], net(x, place.flip(2)).levels[0])


def test_attention__equals_the_sum_over_all_pairs():
    torch.manual_seed(0)
    block, x = LinearAttentionBlock(8, 2), image(8, (3, 4))
    q, k, v = (one.unflatten(1, (2, 4)).flatten(3).movedim(2, 3) for one in block.ask(x).chunk(3, 1))
    q, k = torch.where(q > 0, q + 1, q.exp()), torch.where(k > 0, k + 1, k.exp())
    weight = q @ k.mT
    expected = (weight / weight.sum(-1, keepdim=True)) @ v
    torch.testing.assert_close(block._attended(x), expected.movedim(3, 2).flatten(1, 2).unflatten(2, (3, 4)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"levels": ()},
        {"levels": (2, 1)},
        {"grid": 3},
        {"groups": (1, 1)},
        {"decoder": "mlp"},
        {"width": 10},
        {"dropout": 1.0},
        {"depth": 0},
    ],
)
def test_spec__refuses_what_does_not_fit(options):
    with pytest.raises(ValueError, match="Expected"):
        FeatureReconstructionSpec(**options)


@pytest.mark.parametrize(("encoder", "levels"), [("random", (1, 9)), ("resnet18", (1, 9))])
def test_spec__names_levels_that_an_encoder_does_not_have(encoder, levels):
    with pytest.raises(ValueError, match="pyramid"):
        toy(encoder=encoder, levels=levels)
