"""Encoders and projector: shapes, the paper's stem, and what BatchNorm sees."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from wmse.networks import (
    ENCODERS,
    Networks,
    build_encoder,
    build_networks,
    build_projector,
    embed,
    fill,
    read_weights,
    target_momentum,
)
from wmse.recipes import get_recipe
from wmse.run import load_networks


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
    with pytest.raises(ValueError, match="resnet7.*resnet18.*small.*pixels"):
        build_encoder("resnet7")
    with pytest.raises(ValueError, match="48px.*32px, 64px, 224px"):
        build_encoder("resnet18", stem="48px")
    with pytest.raises(ValueError, match="width.*0"):
        build_encoder("resnet18", width=0)


@pytest.mark.parametrize("stem, side, first", [("32px", 32, 32), ("64px", 64, 32), ("224px", 224, 56)])
@pytest.mark.parametrize("width", [16, 64])
def test_stems_bring_images_of_each_size_to_the_first_stage(stem, side, first, width):
    encoder = build_encoder("resnet18", stem, width).eval()
    shapes = []
    encoder.layer1.register_forward_pre_hook(lambda _module, inputs: shapes.append(tuple(inputs[0].shape)))
    with torch.inference_mode():
        assert encoder(torch.randn(1, 3, side, side)).shape == (1, 8 * width) == (1, encoder.out_features)
    assert shapes == [(1, width, first, first)]


def test_at_full_width_resnet18_is_torchvisions():
    from torchvision.models import resnet18

    torch.manual_seed(0)
    ours = build_encoder("resnet18", "224px").state_dict()
    torch.manual_seed(0)
    theirs = resnet18().state_dict()
    assert ours.keys() == theirs.keys() - {"fc.weight", "fc.bias"}
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_zero_init_residual_makes_each_block_pass_its_input_on():
    encoder = build_encoder("resnet18", zero_init_residual=True)
    assert not any(bool(block.bn2.weight.any()) for block in encoder.layer1)


def test_pixels_are_the_image():
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(build_encoder("pixels")(images), images.flatten(1))


def test_projector_is_the_official_codes():
    kinds = [type(layer) for layer in build_projector(512, 1024, 64)]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    plain = [type(layer) for layer in build_projector(512, 1024, 64, batchnorm=False)]
    assert plain == [nn.Linear, nn.ReLU, nn.Linear]
    ending = build_projector(512, 1024, 64, output_batchnorm=True)[-1]
    assert isinstance(ending, nn.BatchNorm1d) and ending.affine and ending.num_features == 64


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_a_projector_has_so_many_linear_layers(layers):
    projector = build_projector(16, 24, 16, layers=layers)
    linear = [part for part in projector if isinstance(part, nn.Linear)]
    assert len(linear) == layers
    assert sum(isinstance(part, nn.BatchNorm1d) for part in projector) == max(0, layers - 1)
    rows = torch.randn(5, 16)
    assert projector(rows).shape == (5, 16)
    assert torch.equal(projector(rows), rows) == (layers == 0)


@pytest.mark.parametrize(("layers", "words"), [(-1, "0 layers at least"), (0, "outputs = inputs = 16")])
def test_a_projector_that_cannot_be_is_refused(layers, words):
    with pytest.raises(ValueError, match=words):
        build_projector(16, 24, 8, layers=layers)


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


# --- BYOL's networks ------------------------------------------------------------------------------


def byol():
    torch.manual_seed(0)
    return build_networks(get_recipe("digits/byol"))


def test_byols_projector_and_predictor_see_one_view_at_a_time():
    networks, seen = byol(), []
    for network in (networks.projector, networks.predictor, networks.target[1]):
        network[1].register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    outputs = networks([torch.randn(6, 3, 32, 32) for _ in range(3)])
    assert seen == [6] * 9
    assert [tensor.shape for tensor in outputs] == [(3, 6, 32)] * 3


def test_the_target_starts_as_a_copy_gets_no_gradient_and_follows():
    networks = byol().train()
    views = [torch.randn(6, 3, 32, 32) for _ in range(2)]
    outputs = networks(views)
    torch.testing.assert_close(outputs.targets, outputs.embeddings)  # the same networks so far
    assert not outputs.targets.requires_grad
    assert not any(parameter.requires_grad for parameter in networks.target.parameters())

    before = [parameter.clone() for parameter in networks.target.parameters()]
    online = [*networks.encoder.parameters(), *networks.projector.parameters()]
    with torch.no_grad():
        for parameter in online:
            parameter.add_(1.0)
    networks.follow(0.9)
    for old, new, source in zip(before, networks.target.parameters(), online, strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * source)


def test_the_targets_batchnorm_keeps_statistics_of_its_own():
    networks = byol().train()
    networks([torch.randn(6, 3, 32, 32) + 5 for _ in range(2)])
    own, followed = networks.target[0][1], networks.encoder[1]
    assert own.training and int(own.num_batches_tracked) == 2
    with torch.no_grad():
        followed.running_mean.fill_(7.0)
    networks.follow(0.0)
    assert float(own.running_mean.max()) < 7


def test_target_momentum_rises_along_a_cosine():
    assert target_momentum(0.99, 0.0) == pytest.approx(0.99)
    assert target_momentum(0.99, 0.5) == pytest.approx(0.995)
    assert target_momentum(0.99, 1.0) == pytest.approx(1.0)


def test_other_methods_have_no_predictor_and_supervision_a_classifier():
    assert build_networks(get_recipe("digits/w-mse-2")).target is None
    networks = build_networks(get_recipe("digits/supervised"), 7)
    assert isinstance(networks, Networks) and isinstance(networks.projector, nn.Linear)
    assert networks([torch.randn(2, 3, 32, 32)]).embeddings.shape == (1, 2, 7)


def test_the_projector_sees_one_view_at_a_time_where_a_recipe_asks_for_it():
    views = [torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    recipe = get_recipe("digits/w-mse-2")
    for per_view in (False, True):
        networks = build_networks(replace(recipe, projector_per_view=per_view))
        outputs = networks(views)
        assert networks.projector[1].num_batches_tracked == 1 + per_view
        features = [networks.encoder(view) for view in views]
        alone = torch.stack([networks.projector(rows) for rows in features])
        assert torch.allclose(outputs.embeddings, alone, atol=1e-5) == per_view


# --- saved weights --------------------------------------------------------------------------------

SMALL = replace(get_recipe("digits/w-mse-2"), projector_width=16, embedding_dim=8)


@pytest.fixture
def saved(tmp_path):
    """A folder with the encoder and the projector of `SMALL`, saved as a run saves them."""
    networks = build_networks(SMALL, 10)
    for name in ("encoder", "projector"):
        save_file(getattr(networks, name).state_dict(), tmp_path / f"{name}.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>404</html>", "a web page"),
        (b"", "an empty file"),
        (b"\x10", "a cut or damaged file"),
        (b"PK\x03\x04 and so on, for longer than a header", "a file of torch.save"),
        (bytes(4096), "a cut or damaged file"),
    ],
)
@pytest.mark.parametrize("name", ["encoder", "projector"])
def test_a_file_that_holds_no_weights_is_told_for_what_it_is(saved, name, content, words):
    (saved / f"{name}.safetensors").write_bytes(content)
    with pytest.raises(ValueError) as told:
        load_networks(saved, SMALL)
    text = str(told.value)
    assert (
        text.startswith(f"{saved / name}.safetensors holds no weights, but is {words}") and "\n" not in text
    )


def test_weights_cut_anywhere_are_told_by_path(saved):
    path = saved / "encoder.safetensors"
    content = path.read_bytes()
    for keep in (4, 8, 100, 2000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:keep])
        with pytest.raises(ValueError, match=r"encoder.safetensors holds no weights, but is a cut"):
            read_weights(path)


def test_weights_that_the_machine_cannot_read_are_its_fault(saved):
    path = saved / "projector.safetensors"
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"projector.safetensors could not be read: No such file"):
        load_networks(saved, SMALL)
    path.mkdir()
    with pytest.raises(IsADirectoryError, match=r"projector.safetensors could not be read: Is a directory"):
        load_networks(saved, SMALL)


def test_weights_of_another_network_or_recipe_are_told_by_path_and_difference(saved):
    encoder, projector = saved / "encoder.safetensors", saved / "projector.safetensors"
    with pytest.raises(
        ValueError, match=r"projector.safetensors does not .*mismatch for 0.weight: .*\(\[16, 256\]\) from"
    ):
        load_networks(saved, replace(SMALL, projector_width=32))
    with pytest.raises(ValueError, match=r"projector.safetensors does not hold .*0.weight.* Copy the right"):
        load_networks(saved, replace(SMALL, method="supervised"))
    with pytest.raises(ValueError, match=r'Missing key\(s\) .*"1.weight", "1.bias", "1.running_mean"'):
        fill(
            nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)),
            nn.Sequential(nn.Linear(2, 3)).state_dict(),
            projector,
        )
    encoder.write_bytes(projector.read_bytes())
    with pytest.raises(
        ValueError, match=r"encoder.safetensors does not hold the encoder of this run's recipe"
    ):
        load_networks(saved, SMALL)


def test_sound_weights_are_loaded_as_they_were_saved(saved):
    for name, network in zip(("encoder", "projector"), load_networks(saved, SMALL), strict=True):
        weights = read_weights(saved / f"{name}.safetensors")
        assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
        assert not network.training
