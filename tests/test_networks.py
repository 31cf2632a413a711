"""Encoders and projector: shapes, the paper's stem, and what BatchNorm sees."""

import pytest
import torch
from torch import nn

from wmse.networks import ENCODERS, build_encoder, build_projector, embed


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_gives_as_many_features_as_it_says(name):
    encoder = build_encoder(name)
    assert encoder(torch.randn(2, 3, 32, 32)).shape == (2, encoder.out_features)


def test_resnet18_has_the_stem_for_32_pixels():
    encoder = build_encoder("resnet18")
    assert (encoder.conv1.kernel_size, encoder.conv1.stride) == ((3, 3), (1, 1))
    assert encoder.conv1.bias is None and isinstance(encoder.maxpool, nn.Identity)
    sizes = []
    encoder.layer1.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.shape[-1]))
    assert encoder(torch.randn(2, 3, 32, 32)).shape == (2, 512)
    assert sizes == [32], "nothing may shrink the image before the first residual layer"


def test_an_unknown_encoder_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="resnet7.*resnet18.*small"):
        build_encoder("resnet7")


def test_projector_is_the_official_codes():
    kinds = [type(layer) for layer in build_projector(512, 1024, 64)]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]


def test_batchnorm_sees_one_view_in_the_encoder_and_all_in_the_projector():
    encoder, projector = build_encoder("small"), build_projector(256, 32, 8)
    seen = {"encoder": [], "projector": []}
    for name, network in {"encoder": encoder, "projector": projector}.items():
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.register_forward_pre_hook(
                    lambda _m, inputs, name=name: seen[name].append(len(inputs[0]))
                )
    embeddings = embed(encoder, projector, torch.randn(3, 10, 3, 32, 32))
    assert embeddings.shape == (3, 10, 8)
    assert set(seen["encoder"]) == {10} and seen["projector"] == [30]
    assert int(encoder[1].num_batches_tracked) == 3 and int(projector[1].num_batches_tracked) == 1


def test_embeddings_keep_the_order_of_views_and_images():
    encoder, projector = build_encoder("small").eval(), build_projector(256, 32, 8).eval()
    views = torch.randn(2, 5, 3, 32, 32)
    with torch.inference_mode():
        whole = embed(encoder, projector, views)
        single = projector(encoder(views[1, 3:4]))
    torch.testing.assert_close(whole[1, 3:4], single, atol=1e-5, rtol=1e-4)
