import pytest
import torch

from anomseg.errors import CheckpointError
from anomseg.nets.segmentation import CompactSegmenter, widen_head
from anomseg.nets.wide_resnet import WideResNet38, WideResNetNet, load_published


def published(net, folder, drop=(), prefix="module."):
    weights = {f"{prefix}{k}": torch.randn_like(v) if v.is_floating_point() else v for k, v in net.state_dict().items() if k not in drop}
    torch.save({"state_dict": weights, "epoch": 3}, folder / "published.pth")
    return folder / "published.pth", weights


def test_layout__is_the_published_one():
    with torch.device("meta"):
        net = WideResNetNet(3, 19)
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert shapes["mod1.conv1.weight"] == (64, 3, 3, 3)
    assert shapes["mod2.block1.proj_conv.weight"] == (128, 64, 1, 1)
    assert shapes["mod4.block6.convs.bn2.0.running_mean"] == (512,)
    assert shapes["mod5.block1.convs.conv2.weight"] == (1024, 512, 3, 3)
    assert shapes["mod7.block1.convs.conv3.weight"] == (4096, 2048, 1, 1)
    assert shapes["aspp.features.3.0.weight"] == (256, 4096, 3, 3)
    assert shapes["aspp.img_conv.0.weight"] == (256, 4096, 1, 1)
    assert shapes["bot_fine.weight"] == (48, 128, 1, 1)
    assert shapes["bot_aspp.weight"] == (256, 1280, 1, 1)
    assert shapes["final.6.weight"] == (19, 256, 1, 1)
    assert (
        sum(p.numel() for name, p in net.named_parameters() if name.startswith("final.")) == 1_296_384 - 256
    )  # 20 outputs have one row more


def test_net__has_an_output_stride_of_eight_and_full_logits():
    net = WideResNet38(divisor=16).build(3, 5).eval()
    assert net(torch.rand(1, 3, 64, 80)).shape == (1, 5, 64, 80)
    assert net.features(torch.rand(1, 3, 64, 80)).shape == (1, 16, 32, 40)


@pytest.mark.parametrize("added", [0, 1])
def test_load_published__fills_every_layer_and_keeps_added_rows(tmp_path, added):
    path, weights = published(WideResNetNet(3, 5, 16), tmp_path)
    net = WideResNetNet(3, 5, 16)
    if added:
        widen_head(net, added)
    last = net.head.weight[5:].clone()
    load_published(net, path)
    for name, value in net.state_dict().items():
        assert torch.equal(value[:5] if name == "final.6.weight" else value, weights[f"module.{name}"])
    assert torch.equal(net.head.weight[5:], last)


def test_ready__loads_the_published_weights_with_the_bands_that_they_expect(tmp_path):
    path, weights = published(WideResNetNet(3, 5, 16), tmp_path)
    spec = WideResNet38(16, str(path))
    net = spec.build(3, 5)
    assert not torch.equal(net.bot_fine.weight, weights["module.bot_fine.weight"])
    mean, std = spec.ready(net)
    assert torch.equal(net.bot_fine.weight, weights["module.bot_fine.weight"])
    assert mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert std.shape == (3,)
    assert WideResNet38(16).ready(net) is None
    with pytest.raises(TypeError, match="WideResNet38 built"):
        spec.ready(CompactSegmenter(8).build(3, 5))


def test_widen_head__replaces_the_layer_of_the_published_name():
    net = WideResNetNet(3, 5, 16).eval()
    image = torch.rand(1, 3, 32, 32)
    before, names = net(image), list(net.state_dict())
    widen_head(net)
    assert list(net.state_dict()) == names
    assert net.final[6].out_channels == 6
    torch.testing.assert_close(net(image)[:, :5], before)


def test_load_published__changes_nothing_where_the_file_does_not_fit(tmp_path):
    path, _ = published(WideResNetNet(3, 5, 16), tmp_path, drop=("bot_fine.weight",))
    net = WideResNetNet(3, 5, 16)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"bot_fine.weight.*missing"):
        load_published(net, path)
    for classes, added in ((7, 0), (4, 0), (6, 1), (4, 1)):
        path, _ = published(WideResNetNet(3, classes, 16), tmp_path)
        wrong = WideResNetNet(3, 5, 16)
        if added:
            widen_head(wrong, added)
        with pytest.raises(CheckpointError, match=f"of 5 classes in .*, but it has {classes}"):
            load_published(wrong, path)
    with pytest.raises(CheckpointError, match=r"of 5 classes in .*, but it has 4"):
        load_published(net, path)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with pytest.raises(ValueError, match="divisor"):
        WideResNet38(divisor=5)
