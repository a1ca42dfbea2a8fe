import pytest
import torch

from anomseg.nets.autoencoder import AutoencoderSpec
from anomseg.nets.autoencoder_contract import PLACES, place_maps


def toy(bands=2, places=0, **options):
    torch.manual_seed(0)
    return AutoencoderSpec(**{"width": 4, "depth": 2, **options}).build(bands, places)


def image(bands=2, size=(16, 20), batch=2):
    return torch.randn(batch, bands, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("skips", ["all", "first", "none"])
@pytest.mark.parametrize("norm", ["group", "batch", "none"])
@pytest.mark.parametrize("defect_head", [False, True])
def test_net__builds_and_every_parameter_learns(skips, norm, defect_head):
    net, x = toy(skips=skips, norm=norm, defect_head=defect_head), image()
    rebuilt = net(x)
    logits = net.judge(x, rebuilt.image)
    assert (logits is None) != defect_head
    (rebuilt.image.square().mean() + (0.0 if logits is None else logits.square().mean())).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("bands", [1, 3, 10])
@pytest.mark.parametrize("size", [(16, 20), (17, 9), (1, 1)])
def test_net__takes_any_bands_and_size_and_a_batch_of_one(bands, size):
    net = toy(bands, defect_head=True, bottleneck=1)
    x = image(bands, size, batch=1)
    rebuilt = net(x)
    assert rebuilt.image.shape == x.shape
    assert rebuilt.features.shape[:2] == (1, 1)
    assert net.judge(x, rebuilt.image).shape == (1, *size)


def influence(skips):
    """How far the output at a pixel depends on the code alone: zeroed code, same input."""
    net, x = toy(skips=skips, depth=1).eval(), image()
    before = net(x).image
    torch.nn.init.zeros_(net.net.code.weight)
    torch.nn.init.zeros_(net.net.code.bias)
    return (net(x).image - net(x + image().flip(2)).image).abs().max(), before


def test_net__without_skips_passes_everything_through_its_code():
    assert influence("none")[0] == 0
    assert influence("all")[0] > 0
    assert influence("first")[0] > 0


def test_net__rebuilds_negative_values_and_knows_no_bounds():
    net = toy(skips="all").eval()
    with torch.no_grad():
        net.net.last.bias += 50
        assert net(image()).image.min() > 10
        net.net.last.bias -= 100
        assert net(image()).image.max() < -10


def test_net__sees_the_places_and_does_not_rebuild_them():
    net, x = toy(places=PLACES).eval(), image()
    place = place_maps((16, 20), 4.0).expand(2, -1, -1, -1)
    assert net(x, place).image.shape == x.shape
    assert not torch.equal(net(x, place).image, net(x, place.flip(2)).image)
    assert [one.shape[-1] for one in net.encoded(x, place)] == [20, 10, 5]


def test_net__drops_numbers_of_the_code_in_training_alone():
    net, x = toy(dropout=0.5), image()
    assert not torch.equal(net(x).image, net(x).image)
    assert torch.equal(net(x).features, net(x).features)
    assert torch.equal(net.eval()(x).image, net(x).image)


def test_net__learns_to_rebuild_one_image():
    net, x = toy(1, width=8), image(1, (8, 8), 1)
    adam = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        adam.zero_grad()
        loss = (net(x).image - x).square().mean()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_head__starts_with_few_defects():
    net, x = toy(defect_head=True), image()
    torch.nn.init.zeros_(net.head.last.weight)
    assert torch.sigmoid(net.judge(x, x)).max() < 0.05


@pytest.mark.parametrize(
    "options",
    [{"skips": "some"}, {"norm": "layer"}, {"activation": "relu"}, {"width": 1}, {"depth": 0}, {"bottleneck": 0}, {"dropout": 1.0}],
)
def test_spec__refuses_what_it_does_not_know(options):
    with pytest.raises(ValueError, match="Expected"):
        AutoencoderSpec(**options)
