"""Classifiers of torchvision (except the largest) and one of each family of timm: built, cut at the head, compared by
the lens, folded. A few small ones always run, all of them with -m slow."""

from __future__ import annotations

import logging

import pytest
import timm
import torch
import torchvision
from torch import nn

from gradless import compare
from models.backends.folding import TOLERANCE, folded
from models.networks import architectures
from models.networks.cutting import cut_at_head
from models.networks.network import Network

TORCHVISION = torchvision.models.list_models(module=torchvision.models)

# On a busy machine the threads of one operation wait for one another longer than they work.
pytestmark = pytest.mark.usefixtures("one_core")

# A small member of each family of timm.
TIMM = """
beit_base_patch16_224 halonet_h1 mobileone_s1 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 convnext_zepto_rms
cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny deit_tiny_distilled_patch16_224
densenet121 dla46x_c dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0 tinynet_e efficientvim_m1
efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny
ghostnet_050 hardcorenas_b hgnetv2_b0 hiera_tiny_224 hieradet_small hrnet_w18_small iformer_t inception_next_atto
inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128s lowformer_b0 mambaout_femto maxvit_pico_rw_256
poolformerv2_s12 gmlp_ti16_224 mobilenetv3_small_050 mobilenetv5_base mobilevit_xxs mvitv2_tiny
naflexvit_base_patch16_parfac_gap nasnetalarge nest_tiny nextvit_small nf_regnet_b0 pit_ti_distilled_224 pnasnet5large
pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetx_002 repghostnet_050 repvit_m0_9 res2next50 resnest14d resnet10t resnetv2_18
rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs
swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224
tresnet_m twins_svt_small vgg11 visformer_tiny vit_tiny_patch16_224 vit_tiny_r_s16_p8_224
vit_srelpos_small_patch16_224 samvit_base_patch16_224 vitamin_small_224 volo_d1_224 ese_vovnet19b_slim_dw
legacy_xception xception41p xcit_nano_12_p8_224
""".split()  # noqa: SIM905 - a list would have one name a line

# Encoders of pictures for language models alone: 170 million parameters and more, images of 500 pixels and more.
WITHOUT_A_SMALL_MEMBER = {"deepseek_vit", "gemma4_vit"}

# Heads of every kind: linear, one or two over one vector, a convolution over a vector, over a map; tokens.
ALWAYS = {
    "squeezenet1_1",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "timm/dla46x_c",
    "timm/levit_128s",
    "timm/mobilenetv3_small_050",
    "timm/regnetx_002",
    "timm/repghostnet_050",
    "timm/starnet_s050",
    "timm/tinynet_e",
}

# Built and nothing more: one image of its 518 pixels is 2 TFLOP, and a forward of the lens may take 30 s.
TOO_LARGE = {"vit_h_14"}

# Number of classes for weights without classes.
_CLASSES = 10

_SMALL_SIDE = 96

_NAMES = [*(name for name in TORCHVISION if name not in TOO_LARGE), *(f"timm/{name}" for name in TIMM)]


_SLOW = [pytest.mark.slow, pytest.mark.timeout(1800)]


def _built(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The network with random weights and two images, small ones where it runs on them."""
    architecture = architectures.find(name)
    whole = architecture.build(None if architecture.labels else _CLASSES).eval()
    generator = torch.Generator().manual_seed(0)
    for module in whole.modules():
        # As after training: folding a new BatchNorm could not go wrong.
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
        # Some have a head of zeros at first, whose logits would show nothing.
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.02, generator=generator)
    side = architecture.transform.crop
    small = torch.rand(2, 3, min(side, _SMALL_SIDE), min(side, _SMALL_SIDE), generator=generator)
    try:
        with torch.no_grad():
            whole(small)
    except (AssertionError, RuntimeError, ValueError):
        return whole, torch.rand(2, 3, side, side, generator=generator)
    return whole, small


def _cut_and_held_to_the_whole(name: str, whole: nn.Module, images: torch.Tensor) -> Network:
    with torch.no_grad():
        expected = whole(images)
        network = cut_at_head(name, whole, images.shape[-1])
        features, logits = network(images)
        head_input = network.head_input(images)
        assert network.logits_of(head_input).equal(logits)
        assert network.features_of(head_input).equal(features)
    assert features.shape == (2, network.dimensions)
    assert logits.shape == (2, network.classes)
    assert logits.equal(expected)
    assert features.isfinite().all()
    assert logits.isfinite().all()
    # Both distinguish the two images.
    assert not features[0].equal(features[1])
    assert not logits[0].equal(logits[1])
    return network


@pytest.mark.parametrize("name", [name if name in ALWAYS else pytest.param(name, marks=_SLOW) for name in _NAMES])
def test_an_architecture_is_cut_compared_and_folded(name: str, caplog: pytest.LogCaptureFixture) -> None:
    whole, images = _built(name)
    network = _cut_and_held_to_the_whole(name, whole, images)

    with caplog.at_level(logging.WARNING):
        fused = folded(network, images)
    assert not caplog.records
    with torch.no_grad():
        for found, expected in zip(fused(images), network(images), strict=True):
            assert (found - expected).abs().max() <= TOLERANCE * max(1.0, expected.abs().max())
    del fused

    comparison = compare(network, images, arms=("grad", "inference_mode", "train"), iterations=1, modules=False)
    reports = {report.arm: report for report in comparison.arms}
    # Not every network runs in train mode; an arm that cannot run has a reason.
    assert {arm.arm for arm in comparison.left_out} <= {"train"}
    assert all(arm.reason for arm in comparison.left_out)
    assert reports["grad"].retained_bytes > 0
    assert reports["grad"].backward.works
    assert reports["inference_mode"].retained_bytes == 0
    assert not reports["inference_mode"].backward.works
    assert reports["grad"].max_abs_difference is not None
    assert reports["grad"].top1_agreement is None


def test_each_family_of_timm_is_among_them() -> None:
    families = [family for family in timm.list_modules() for name in timm.list_models(module=family) if name in TIMM]
    assert sorted([*families, *WITHOUT_A_SMALL_MEMBER]) == sorted(timm.list_modules())


def test_the_architectures_tested_by_default_are_among_them() -> None:
    assert set(_NAMES) >= ALWAYS
