"""Domain-specific batch norm against a BatchNorm of torch's for each site; one site's network from all."""

import pytest
import torch
from torch import nn

from medseg_brn.config import NetworkConfig
from medseg_brn.errors import ConfigError
from medseg_brn.models.architecture import build_network
from medseg_brn.networks.domain_norm import DomainBatchNorm, find_sites, set_sites, take_site
from medseg_brn.networks.folding import fold
from medseg_brn.networks.normalization import freeze_statistics
from medseg_brn.networks.surgery import convert_normalization, recalibrate

SITES = ("a", "b", "c")


def draw_affine(*layers: nn.Module) -> None:
    for layer in layers:
        for value in layer.parameters():
            nn.init.normal_(value, 1, 0.3)


def make_layers(**options) -> tuple[DomainBatchNorm, dict[str, nn.BatchNorm3d]]:
    """The layer, and a BatchNorm for each site with the same numbers."""
    torch.manual_seed(0)
    plain = {site: nn.BatchNorm3d(3, **options) for site in SITES}
    draw_affine(*plain.values())
    layer = DomainBatchNorm(3, SITES, **options)
    for domain, own in zip(layer.domains, plain.values(), strict=True):
        domain.load_state_dict(own.state_dict())
    return layer, plain


def make_unet(**options) -> nn.Module:
    torch.manual_seed(0)
    config = NetworkConfig(channels=(4, 6), norm="domain_batch", **options)
    return build_network(config, 1, 2, SITES)


def train_a_little(network: nn.Module) -> None:
    """Gives each site statistics of its own."""
    generator = torch.Generator().manual_seed(1)
    for step in range(6):
        scale = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1, 1)
        set_sites(network, [SITES[step % 3], SITES[(step + 1) % 3]])
        network(torch.randn(2, 1, 8, 8, 8, generator=generator) * scale + step % 3)


def test_each_item_goes_through_the_batch_norm_of_its_site():
    layer, plain = make_layers(momentum=0.3, eps=1e-3)
    for sites in (("b", "a", "b", "b", "a"), ("a", "b", "a", "a", "b")):
        x = torch.randn(5, 3, 4, 5, 2, requires_grad=True)
        other = x.detach().clone().requires_grad_()
        set_sites(layer, sites)
        expected = torch.empty_like(x)
        for site in ("a", "b"):
            own = [place for place, name in enumerate(sites) if name == site]
            expected[own] = plain[site](other[own])
        y = layer(x)
        torch.testing.assert_close(y, expected)
        weights = torch.randn_like(y)
        (y * weights).sum().backward()
        (expected * weights).sum().backward()
        torch.testing.assert_close(x.grad, other.grad)
    for domain, own in zip(layer.domains, plain.values(), strict=True):
        for name, value in own.state_dict().items():
            torch.testing.assert_close(domain.state_dict()[name], value)
        for mine, theirs in zip(domain.parameters(), own.parameters(), strict=True):
            assert (mine.grad is None) == (theirs.grad is None)
            assert mine.grad is None or torch.allclose(mine.grad, theirs.grad, atol=1e-5)
    untouched = layer.domains[2]
    assert untouched.weight.grad is None and untouched.num_batches_tracked == 0


def test_a_batch_of_one_site_is_batch_norm_bit_for_bit():
    layer, plain = make_layers()
    x = torch.randn(2, 3, 4, 4, 4).to(memory_format=torch.channels_last_3d)
    set_sites(layer, ["b", "b"])
    assert torch.equal(layer(x), plain["b"](x))


@pytest.mark.parametrize("sites", [("a", "a"), ("a", "b")])
def test_the_memory_format_is_kept(sites):
    layer, _ = make_layers()
    set_sites(layer, sites)
    y = layer(torch.randn(2, 3, 4, 4, 4).to(memory_format=torch.channels_last_3d))
    assert y.is_contiguous(memory_format=torch.channels_last_3d)


def test_the_mixture_has_the_moments_of_all_sites_values_together():
    layer = DomainBatchNorm(2, ("a", "b"))
    values = torch.tensor([[[0.0, 2.0], [5.0, 5.0]], [[6.0, 8.0], [1.0, 9.0]]])  # (site, channel, value)
    for domain, own in zip(layer.domains, values, strict=True):
        domain.running_mean.copy_(own.mean(1))
        domain.running_var.copy_(own.var(1, correction=0))
    draw_affine(*layer.domains)
    mixture = layer.take("elsewhere")
    pooled = values.transpose(0, 1).flatten(1)  # 0, 2, 6, 8 and 5, 5, 1, 9
    assert mixture.running_mean.tolist() == pooled.mean(1).tolist() == [4, 5]
    assert mixture.running_var.tolist() == pooled.var(1, correction=0).tolist() == [10, 8]
    torch.testing.assert_close(mixture.weight, (layer.domains[0].weight + layer.domains[1].weight) / 2)
    torch.testing.assert_close(mixture.bias, (layer.domains[0].bias + layer.domains[1].bias) / 2)
    assert type(mixture) is nn.BatchNorm3d


def test_the_mixture_of_sites_that_are_alike_is_each_of_them():
    layer = DomainBatchNorm(4, SITES, affine=False)
    for domain in layer.domains:
        domain.running_mean.copy_(torch.tensor([1e3, 0, -1, 5]))
        domain.running_var.copy_(torch.tensor([1e-3, 1, 2, 4]))
    mixture = layer.take(None)
    torch.testing.assert_close(mixture.running_var, layer.domains[0].running_var)
    assert torch.equal(mixture.running_mean, layer.domains[0].running_mean)


@pytest.mark.parametrize("site", SITES)
def test_one_sites_network_is_the_network_told_that_site(site):
    network = make_unet(encoder="residual", weight_standardization=False)
    train_a_little(network)
    network.eval()
    x = torch.randn(2, 1, 16, 8, 8)
    set_sites(network, [site, site])
    expected = network(x)
    taken = take_site(network, site)
    assert find_sites(network) == SITES and find_sites(taken) == ()
    assert torch.equal(taken(x), expected)
    torch.testing.assert_close(fold(taken)(x), expected, rtol=1e-4, atol=1e-4)
    others = [take_site(network, other)(x) for other in (*SITES, None) if other != site]
    assert all(not torch.allclose(other, expected, atol=1e-3) for other in others)


def test_a_network_without_sites_is_taken_as_it_is():
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    assert take_site(network, "a") is network and find_sites(network) == ()
    set_sites(network, ["a"])


def test_activation_checkpointing_changes_nothing():
    networks = [make_unet(), make_unet()]
    networks[1].activation_checkpointing = True
    x = torch.randn(2, 1, 8, 8, 8)
    for network in networks:
        for sites in (["a", "b"], ["b", "b"]):
            set_sites(network, sites)
            network(x).square().sum().backward()
    for (name, value), other in zip(networks[0].named_parameters(), networks[1].parameters(), strict=True):
        assert (value.grad is None) == (other.grad is None), name
        if value.grad is not None:
            torch.testing.assert_close(value.grad, other.grad)
    for (name, value), other in zip(networks[0].named_buffers(), networks[1].buffers(), strict=True):
        torch.testing.assert_close(value, other, msg=name)


def test_frozen_statistics_stay_and_normalize():
    network = make_unet()
    train_a_little(network)
    freeze_statistics(network)
    before = {name: value.clone() for name, value in network.named_buffers()}
    x = torch.randn(2, 1, 8, 8, 8)
    set_sites(network, ["a", "c"])
    y = network(x)
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    torch.testing.assert_close(y[1:], take_site(network, "c").eval()(x[1:]))


def test_recalibration_gives_each_site_the_moments_of_its_own_items():
    layer, _ = make_layers()
    batches = [torch.randn(3, 3, 4, 4, 4) * 2 + 1 for _ in range(4)]
    of_items = [("a", "b", "a"), ("b", "b", "a"), ("a", "a", "b"), ("b", "a", "b")]

    def told():
        for batch, sites in zip(batches, of_items, strict=True):
            set_sites(layer, sites)
            yield batch

    recalibrate(layer, told())
    for site in ("a", "b"):
        own = torch.cat([x[[name == site for name in s]] for x, s in zip(batches, of_items, strict=True)])
        domain = layer.domains[SITES.index(site)]
        torch.testing.assert_close(domain.running_mean, own.mean((0, 2, 3, 4)))
        torch.testing.assert_close(domain.running_var, own.var((0, 2, 3, 4), correction=0))


def test_every_site_of_a_converted_network_begins_as_the_network_was():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, eps=1e-3), nn.ReLU())
    draw_affine(network[1])
    for _ in range(3):
        network(torch.randn(2, 1, 8, 8) * 3)
    x = torch.randn(3, 1, 8, 8)
    expected = network.eval()(x)
    convert_normalization(network, "domain_batch", sites=SITES, momentum=0.2)
    assert [domain.momentum for domain in network[1].domains] == [0.2] * 3
    set_sites(network, ["c", "a", "b"])
    torch.testing.assert_close(network(x), expected)


def test_what_the_layer_is_not_told_is_an_error_that_says_how():
    layer, _ = make_layers()
    with pytest.raises(ConfigError, match=r"got 2 items, and knows the sites of 0; tell it by set_sites"):
        layer(torch.randn(2, 3, 4, 4, 4))
    with pytest.raises(ConfigError, match=r"item of site 'd', and domain_batch was made for a, b, c"):
        set_sites(layer, ["a", "d"])
    with pytest.raises(ConfigError, match="item of site None"):
        set_sites(layer, [None])
    for sites in ((), ("a", "a")):
        with pytest.raises(ConfigError, match="at least one, each once"):
            DomainBatchNorm(3, sites)
