import pytest
import torch

from anomseg.nets.siamese_unet import SiameseConvUNet, SiameseUNetSpec

FUSIONS = ["concatenate", "difference", "both", "early"]


def dates(bands=2, size=(16, 24), batch=1):
    g = torch.Generator().manual_seed(0)
    return torch.randn(batch, bands, *size, generator=g), torch.randn(batch, bands, *size, generator=g)


def toy(fusion="both", bands=2, **options):
    torch.manual_seed(0)
    return SiameseConvUNet(bands, SiameseUNetSpec(width=4, fusion=fusion, **{"levels": 3, **options}))


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("fold", [1, 4])
def test_net__builds_and_every_parameter_learns(fusion, fold):
    net = toy(fusion, fold=fold).train()
    out = net(*dates())
    torch.stack([one.square().mean() for one in (out.logits, *out.auxiliary)]).sum().backward()
    assert out.logits.shape == (1, 16, 24)
    assert len(out.auxiliary) == 2
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("size", [(16, 24), (17, 9), (3, 30), (1, 1)])
@pytest.mark.parametrize("bands", [1, 4])
def test_net__takes_any_size_and_bands(size, bands):
    out = toy(bands=bands).eval()(*dates(bands, size))
    assert out.logits.shape == (1, *size)
    assert out.auxiliary == ()


def test_net__of_differences_does_not_see_the_order_of_the_dates():
    a, b = dates()
    net = toy("difference").eval()
    torch.testing.assert_close(net(a, b).logits, net(b, a).logits)
    net = toy("both").eval()
    assert not torch.allclose(net(a, b).logits, net(b, a).logits)


def test_net__of_differences_without_change_is_the_same_everywhere_inside():
    a, _ = dates(size=(40, 40))
    logits = toy("difference", levels=1, norm="none").eval()(a, a.clone()).logits[:, 8:-8, 8:-8]
    torch.testing.assert_close(logits, logits[:, :1, :1].expand_as(logits))


def test_net__starts_at_its_prior():
    net = toy(fold=2)
    torch.nn.init.zeros_(net.head.last.weight)
    net.set_prior(0.1)
    torch.testing.assert_close(torch.sigmoid(net(*dates()).logits), torch.full((1, 16, 24), 0.1))


@pytest.mark.parametrize("options", [{"fusion": "late"}, {"width": 0}, {"levels": 0}, {"fold": 0}])
def test_spec__refuses_what_it_does_not_know(options):
    with pytest.raises(ValueError, match="Expected"):
        SiameseUNetSpec(**options)


def test_net__exports_for_batches_and_images_of_any_size():
    net = toy(levels=2).eval()
    rows, columns = (torch.export.Dim(name, min=3, max=64) for name in ("rows", "columns"))
    sizes = ({0: torch.export.Dim("batch", min=1, max=64), 2: 2 * rows, 3: 2 * columns},) * 2
    program = torch.export.export(net, dates(size=(10, 8), batch=3), dynamic_shapes=sizes).module()
    for batch, size in ((1, (10, 8)), (5, (6, 12))):
        given = dates(size=size, batch=batch)
        torch.testing.assert_close(program(*given).logits, net(*given).logits)
