"""Opening a network: before its linear head, and at sites inside, for many architectures."""

from __future__ import annotations

import copy
from collections import namedtuple
from functools import partial

import pytest
import timm
import torch
import torchvision
from support import refusal, streams, tiny_dataset
from torch import nn
from torch.nn import functional
from torchvision.models.convnext import CNBlockConfig

from benchmark.defended import Defended
from benchmark.errors import SpecError, VictimError
from benchmark.stack import DefenseChoice
from benchmark.victim import Victim
from registry.defenses.unig import UniG
from registry.models.resnet_cifar import CifarResNet

zoo = torchvision.models


def victim_of(network, channels=3, classes=10):
    mean, std = (0.5,) * channels, (0.25,) * channels
    return Victim(network, mean=mean, std=std, num_classes=classes)


# --- architectures of torchvision and timm, with random weights ---


def tv(name, **options):
    return partial(zoo.get_model, name, weights=None, num_classes=10, **options)


def tm(name, **options):
    return partial(timm.create_model, name, pretrained=False, num_classes=10, **options)


def small_convnext():
    blocks = [(16, 32, 2), (32, 48, 1), (48, 64, 9), (64, None, 1)]
    return zoo.ConvNeXt([CNBlockConfig(*block) for block in blocks], num_classes=10)


def small_timm_vgg():
    cfg = [8, "M", 16, "M", 16, "M", 16, "M", 32]
    return timm.models.VGG(cfg, num_classes=10)


def at(prefix, *names):
    return tuple(prefix + str(name) for name in names)


RESNET = ("maxpool", "layer1", "layer2", "layer3")
INCEPTION = [f"inception{name}" for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")]
POOLFORMER = [f"{s}.blocks.{b}" for s, depth in enumerate((2, 2, 6, 2)) for b in range(depth)]
# Architecture: how it is built, the side of its images, d or why it cannot be split, its sites.
NETWORKS = {
    "torchvision resnet18": (tv("resnet18"), 32, 512, RESNET),
    "torchvision wide_resnet50_2": (tv("wide_resnet50_2"), 32, 2048, RESNET),
    "torchvision regnet_y_400mf": (
        *(tv("regnet_y_400mf"), 32, 440),
        at("trunk_output.block", 1, 2, 3, 4),
    ),
    "torchvision googlenet": (
        *(tv("googlenet", init_weights=False), 32, 1024),
        ("conv1", "conv2", "conv3", *INCEPTION),
    ),
    "torchvision inception_v3": (
        *(tv("inception_v3", init_weights=False), 75, 2048),
        (
            *at("Conv2d_", "1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3"),
            *at("Mixed_", "5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"),
        ),
    ),
    "torchvision vgg11_bn": (
        *(tv("vgg11_bn", init_weights=False), 32, 4096),
        at("in:features.", 0, 4, 8, 11, 15, 18, 22, 25),
    ),
    "torchvision mobilenet_v3_small": (
        *(tv("mobilenet_v3_small"), 32, 1024),
        at("features.", *range(13)),
    ),
    "torchvision efficientnet_b0": (tv("efficientnet_b0"), 32, 1280, at("features.", *range(9))),
    "torchvision convnext": (small_convnext, 32, 64, at("features.", *range(8))),
    "torchvision densenet": (
        *(lambda: zoo.DenseNet(8, (1, 2, 6, 1), 16, num_classes=10), 32, 39),
        at(
            "features.",
            *("conv0", "norm0", "relu0", "pool0", "denseblock1", "transition1", "denseblock2"),
            *("transition2", "denseblock3", "transition3", "denseblock4", "norm5"),
        ),
    ),
    "torchvision shufflenet_v2_x0_5": (
        *(tv("shufflenet_v2_x0_5"), 32, 1024),
        ("conv1", "stage2", "stage3", "stage4", "conv5"),
    ),
    "torchvision maxvit": (
        *(lambda: zoo.MaxVit((64, 64), 16, 2, [16, 32], [2, 2], 8, 0.0, num_classes=10), 64, 32),
        at("blocks.", 0, 1),
    ),
    "torchvision vit": (
        *(lambda: zoo.VisionTransformer(32, 8, 3, 2, 32, 64, num_classes=10), 32, 32),
        at("in:encoder.layers.encoder_layer_", 0, 1, 2),
    ),
    "torchvision swin": (
        lambda: zoo.SwinTransformer([4, 4], 16, [2, 1, 9, 1], [1, 2, 4, 8], [4, 4], num_classes=10),
        *(32, 128, at("features.", *range(8))),
    ),
    "torchvision squeezenet1_1": (
        *(tv("squeezenet1_1"), 64, "'classifier.1' maps more than one vector"),
        at("features.", *range(13)),
    ),
    "timm resnet18": (tm("resnet18"), 32, 512, RESNET),
    "timm resnetv2_50": (
        *(tm("resnetv2_50", layers=(1, 1, 2, 1)), 32, 2048),
        at("stages.", 0, 1, 2, 3),
    ),
    "timm vgg": (small_timm_vgg, 32, 4096, at("in:features.", 0, 3, 6, 9, 12)),
    "timm vit_tiny": (
        *(tm("vit_tiny_patch16_224", img_size=32, depth=3), 32, 192),
        at("in:blocks.", 0, 1, 2),
    ),
    "timm deit_tiny": (
        *(tm("deit_tiny_patch16_224", img_size=32, depth=3), 32, 192),
        at("in:blocks.", 0, 1, 2),
    ),
    "timm deit_tiny_distilled": (
        *(tm("deit_tiny_distilled_patch16_224", img_size=32, depth=3), 32, "2 heads"),
        at("in:blocks.", 0, 1, 2),
    ),
    "timm mixer_s32": (tm("mixer_s32_224", img_size=64), 64, 512, at("in:blocks.", *range(8))),
    "timm resmlp_12": (tm("resmlp_12_224", img_size=32), 32, 384, at("in:blocks.", *range(12))),
    "timm convnext_atto": (tm("convnext_atto"), 32, 320, at("stages.", 0, 1, 2, 3)),
    "timm swin_tiny": (
        tm("swin_tiny_patch4_window7_224", img_size=56, embed_dim=24, depths=(1, 1, 9, 1)),
        *(56, 192, at("layers.", 0, 1, 2, 3)),
    ),
    "timm efficientnet_lite0": (tm("efficientnet_lite0"), 32, 1280, at("blocks.", *range(7))),
    "timm mobilenetv3_small_050": (
        *(tm("mobilenetv3_small_050"), 32, 1024),
        at("blocks.", *range(6)),
    ),
    "timm densenet121": (
        *(tm("densenet121", growth_rate=8, block_config=(1, 2, 2, 1)), 32, 23),
        at(
            "features.",
            *("conv0", "norm0", "pool0", "denseblock1", "transition1", "denseblock2"),
            *("transition2", "denseblock3", "transition3", "denseblock4", "norm5"),
        ),
    ),
    "timm regnetx_002": (tm("regnetx_002"), 32, 368, ("stem", "s1", "s2", "s3", "s4")),
    "timm poolformer_s12": (tm("poolformer_s12"), 32, 512, at("in:stages.", *POOLFORMER)),
    "timm xcit_nano": (
        *(tm("xcit_nano_12_p16_224", img_size=32, depth=3), 32, 128),
        at("in:blocks.", 0, 1, 2),
    ),
    "timm coat_lite_tiny": (
        *(tm("coat_lite_tiny", img_size=64), 64, 320),
        (
            *at("patch_embed", 1, 2, 3, 4),
            *at("cpe", 1, 2, 3, 4),
            *at("crpe", 1, 2, 3, 4),
        ),
    ),
    "timm levit_128s": (tm("levit_128s"), 224, "2 heads", at("stages.", 0, 1, 2)),
    "timm hrnet_w18_small": (
        *(tm("hrnet_w18_small"), 32, 2048),
        ("layer1", "stage2", "stage3", "stage4", "final_layer"),
    ),
}


def lively(network, images):
    """Give a random network activations of usual size, so that equality means something."""
    norms = [m for m in network.eval().modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        network(images.repeat(2, 1, 1, 1) * 4 - 2)
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and len(module.weight) == 10:
            nn.init.normal_(module.weight)
    return network.eval()


@pytest.fixture(scope="module", params=NETWORKS)
def opened(request):
    """Name, victim, images and logits of an architecture."""
    build, side, _, _ = NETWORKS[request.param]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        images = torch.rand(3, 3, side, side)
        victim = victim_of(lively(build(), images))
        logits = victim(images)
    assert logits.std(dim=0).min() > 1e-3
    return request.param, victim, images, logits


def test_the_head_of_the_features_is_the_victim_or_the_reason_is_named(opened):
    name, victim, images, logits = opened
    wanted = NETWORKS[name][2]
    if isinstance(wanted, str):
        message = refusal(VictimError, lambda: victim.features(images))
        assert wanted in message and "use a defense that acts on" in message
    else:
        features = victim.features(images)
        assert features.shape == (3, wanted)
        assert torch.equal(victim.head(features), logits)
        layer = victim.last_linear
        made = functional.linear(features, layer.weight, layer.bias)
        torch.testing.assert_close(made, logits, rtol=1e-4, atol=1e-4)
        assert layer.weight.shape == (10, wanted)
    assert not any(m._forward_pre_hooks for m in victim.modules())


# Modules under several names; transposed maps before a batch normalisation; attention; plain ones.
ODD = ("coat_lite_tiny", "xcit_nano", "levit_128s", "swin_tiny", "convnext_atto", "resnet18")


@pytest.mark.parametrize("opened", [f"timm {name}" for name in ODD], indirect=True)
@pytest.mark.parametrize("text", ["pni", "pni[draw=per-call]", "dent", "anti-adversary"])
def test_defenses_by_weights_and_slopes_answer_and_leave_the_victim_as_it_was(opened, text):
    _, victim, images, _ = opened
    exact, defense = copy.deepcopy(victim).double(), DefenseChoice.parse(text).build()
    try:
        defense.check(exact)
    except SpecError as error:
        pytest.skip(str(error))
    defense.prepare(exact, tiny_dataset())
    with torch.no_grad():
        before = exact(images.double())
    defended = Defended(exact, defense, 64)

    def ask(rows):
        return defended.answer(images[rows].double(), torch.tensor(rows), streams(3))

    together = ask([0, 1, 2])
    assert not torch.allclose(together, before, rtol=1e-6, atol=1e-6)
    assert torch.equal(ask([0, 1, 2]), together)
    if "per-call" not in text:
        alone = torch.cat([ask([0]), ask([1]), ask([2])])
        torch.testing.assert_close(alone, together, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(exact(images.double()), before)


def test_the_usual_sites_are_those_of_the_family(opened):
    name, victim, _, _ = opened
    assert victim.stages() == NETWORKS[name][3]


def test_every_usual_site_is_passed_and_only_a_change_there_changes_the_logits(opened):
    _, victim, images, logits = opened
    passed = []

    def look(features, site):
        passed.append(site)
        assert len(features) == len(images)
        return features + 0.0

    def shake(features):
        noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
        return features + features.std() * noise

    with torch.no_grad():
        with victim.edited({site: partial(look, site=site) for site in victim.stages()}):
            assert torch.equal(victim(images), logits)
        assert set(passed) == set(victim.stages())
        for site in victim.stages():
            with victim.edited({site: shake}):
                change = (victim(images) - logits).abs().max()
            assert change > 1e-3 * logits.std(), site
        assert torch.equal(victim(images), logits)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in victim.modules())


# --- sites ---

Pair = namedtuple("Pair", ("first", "second"))


class Two(nn.Module):
    """A step that gives two tensors as the given kind, and one that takes two."""

    def __init__(self, kind):
        super().__init__()
        self.split, self.join = _Split(kind), _Join()
        self.linear = nn.Linear(4, 10)

    def forward(self, images):
        return self.linear(self.join(*self.split(images.flatten(1)[:, :4])))


class _Split(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, values):
        return self.kind((values, 2 * values))


class _Join(nn.Module):
    def forward(self, first, second):
        return first + 10 * second


@pytest.mark.parametrize("kind", [tuple, list, Pair._make])
@pytest.mark.parametrize("site", ["split", "in:join"])
def test_of_several_tensors_the_first_is_changed(kind, site):
    victim = victim_of(Two(kind))
    images = torch.rand(2, 3, 2, 2)
    values = (images.flatten(1)[:, :4] - 0.5) / 0.25
    seen = []
    handle = victim.network.join.register_forward_pre_hook(lambda _m, args: seen.append(args))
    if site == "split":
        with victim.edited({site: lambda features: features + 1}):
            victim(images)
        handle.remove()
        torch.testing.assert_close(seen[0], (values + 1, 2 * values))
    with victim.edited({site: torch.zeros_like}):
        found = victim(images)
    torch.testing.assert_close(found, victim.network.linear(20 * values))


def test_a_named_tuple_stays_one():
    victim = victim_of(Two(Pair._make))
    kinds = []
    with victim.edited({"split": torch.zeros_like}):
        victim.network.split.register_forward_hook(lambda _m, _i, out: kinds.append(type(out)))
        victim(torch.rand(2, 3, 2, 2))
    assert kinds == [Pair]


def test_a_site_without_a_tensor_is_refused():
    victim = victim_of(Two(lambda _: {"no": 1}))
    images = torch.rand(2, 3, 2, 2)
    with victim.edited({"split": torch.zeros_like}):
        message = refusal(SpecError, lambda: victim(images))
    assert "'split'" in message and "dict" in message
    assert not any(m._forward_hooks for m in victim.modules())


class Residual(nn.Module):
    """A block around which the features pass, and whose ReLU works in place."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.block = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))
        self.linear = nn.Linear(4, 10)

    def forward(self, images):
        features = self.stem(images)
        return self.linear((features.clone() + self.block(features)).mean((2, 3)))


def test_the_input_of_a_block_is_changed_for_the_block_alone_and_its_output_after_it():
    network = Residual()
    victim, images = victim_of(network), torch.rand(2, 3, 4, 4)
    features = network.stem((images - 0.5) / 0.25)

    def by_hand(inner, outer):
        return network.linear((features + outer(network.block(inner(features)))).mean((2, 3)))

    for site, inner, outer in [
        ("in:block", lambda f: f + 1, lambda f: f),
        ("block", torch.clone, lambda f: f + 1),
    ]:
        with victim.edited({site: lambda f: f + 1}):
            found = victim(images)
        torch.testing.assert_close(found, by_hand(inner, outer))


def test_unknown_sites_are_refused_with_the_nearest_names():
    victim = victim_of(CifarResNet(3, 10))
    assert victim.stage("in:layer1") is victim.stage("layer1") is victim.network.layer1
    for name in ("layer9", "in:layer9"):
        message = refusal(SpecError, lambda name=name: victim.stage(name))
        assert f"'{name}'" in message and "layer3" in message
    for name in ("", "in:"):
        assert "no stage" in refusal(SpecError, lambda name=name: victim.stage(name))


def test_a_failing_edit_leaves_no_hook():
    victim = victim_of(CifarResNet(3, 10))
    images = torch.rand(2, 3, 32, 32)
    for site in ("layer1", "in:layer1"):
        with pytest.raises(ZeroDivisionError), victim.edited({site: lambda maps: maps / (1 // 0)}):
            victim(images)
        with pytest.raises(SpecError), victim.edited({site: torch.relu, "layer9": abs}):
            pass
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in victim.modules())


def chain_of(*layers):
    return victim_of(nn.Sequential(*layers)).stages()


def test_rules_for_networks_of_no_family():
    convs = [nn.Conv2d(3, 3, 1) for _ in range(3)]
    plain = nn.Sequential(convs[0], nn.ReLU(), convs[1])
    assert chain_of(*plain, nn.Flatten(), nn.Linear(12, 10)) == ("0", "2")  # not the logits
    assert chain_of(plain, nn.Flatten(), nn.Linear(12, 10)) == ("0.0", "0.1", "0.2")
    equal = nn.Sequential(*(nn.Sequential(conv, nn.ReLU()) for conv in convs))
    assert chain_of(equal, nn.Flatten(), nn.Linear(12, 10)) == ("in:0.0", "in:0.1", "in:0.2")
    unequal = nn.Sequential(*equal, nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))
    assert chain_of(unequal, nn.Flatten(), nn.Linear(16, 10)) == at("0.", 0, 1, 2, 3)
    wide = CifarResNet(1, 10)
    wide.layer4 = nn.Identity()
    assert victim_of(wide).stages() == ("layer1", "layer2", "layer3")


# --- heads ---


class Headed(nn.Module):
    """Features of 4 values in a map of any size, and a head."""

    def __init__(self, head, size=1, after=None):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.head = head
        self.size, self.after = size, after or (lambda logits: logits.flatten(1))

    def forward(self, images):
        maps = functional.adaptive_avg_pool2d(self.stem(images), self.size)
        is_linear = isinstance(self.head, nn.Linear)
        return self.after(self.head(maps.flatten(1) if is_linear else maps))


@pytest.mark.parametrize(
    ("head", "size", "width"),
    [
        (nn.Conv2d(4, 10, 1), 1, 4),
        (nn.Conv2d(4, 10, 1, bias=False), 1, 4),
        (nn.Conv2d(4, 10, 3), 3, 36),
        (nn.Linear(36, 10, bias=False), 3, 36),
    ],
    ids=str,
)
def test_a_convolution_over_all_of_its_input_is_a_head(head, size, width):
    victim, images = victim_of(Headed(head, size)), torch.rand(2, 3, 6, 6)
    features = victim.features(images)
    assert features.shape == (2, width)
    assert torch.equal(victim.head(features), victim(images))
    assert victim.last_linear.weight.shape == (10, width)
    assert (victim.last_linear.bias is None) == (head.bias is None)
    victim.double()  # the head follows
    assert victim.head(features.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Headed(nn.Conv2d(4, 10, 1), 2, lambda maps: maps.mean((2, 3))), "more than one vector"),
        (Headed(nn.Conv2d(4, 10, 1), 1, lambda maps: maps.relu().flatten(1)), "alone"),
        (Headed(nn.Conv2d(4, 5, 1), 1, lambda maps: maps.flatten(1).repeat(1, 2)), "alone"),
        (Headed(nn.Conv2d(4, 10, 2, groups=2), 2), "more than one vector"),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 10), nn.Sigmoid()), "'1' does not make"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "it has no linear layer"),
    ],
    ids=range(6),
)
def test_other_networks_cannot_be_split_and_the_reason_is_named(network, reason):
    victim, images = victim_of(network), torch.rand(2, 3, 2, 2) - 0.5
    message = refusal(VictimError, lambda: victim.features(images))
    assert "cannot be split" in message and reason in message
    assert "images, stages or logits" in message
    for ask in (lambda: victim.head(torch.rand(2, 4)), lambda: victim.last_linear):
        assert "ask for features" in refusal(VictimError, ask)
    assert not any(m._forward_pre_hooks for m in victim.modules())


def test_a_layer_used_twice_is_no_head():
    layer = nn.Linear(12, 12)
    victim = victim_of(nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer), classes=12)
    message = refusal(VictimError, lambda: victim.features(torch.rand(2, 3, 2, 2)))
    assert "is used 2 times" in message


class Disordered(nn.Module):
    """Registers its classifier before another linear layer; names it if asked to."""

    def __init__(self, classifier, named):
        super().__init__()
        self.classifier = classifier
        self.inner = nn.Linear(12, 4)
        if named:
            self.get_classifier = lambda: self.classifier

    def forward(self, images):
        return self.classifier(self.inner(images.flatten(1)).relu())


def test_a_classifier_that_the_network_names_need_not_be_its_last_layer():
    images = torch.rand(2, 3, 2, 2)
    victim = victim_of(Disordered(nn.Linear(4, 10), named=True))
    features = victim.features(images)
    assert features.shape == (2, 4) and torch.equal(victim.head(features), victim(images))
    victim = victim_of(Disordered(nn.Linear(4, 10), named=False))
    assert "'inner'" in refusal(VictimError, lambda: victim.features(images))
    victim = victim_of(Disordered(nn.Linear(4, 10), named=True))
    victim.network.get_classifier = lambda: nn.ModuleList([nn.Linear(4, 10), nn.Linear(4, 10)])
    assert "2 heads" in refusal(VictimError, lambda: victim.features(images))


@pytest.mark.parametrize("delta", [0.0, 0.5])
def test_a_defense_of_the_penultimate_features_works_on_a_convolutional_head(delta):
    data = tiny_dataset((3, 6, 6), classes=10)
    victim = victim_of(Headed(nn.Conv2d(4, 10, 1, bias=False))).double()
    images = data.take("eval", 5).images
    defense = UniG(delta=delta)
    defense.prepare(victim, data)
    answers = Defended(victim, defense, 64).answer(images, torch.arange(5), streams(5))
    assert torch.equal(answers, victim(images)) == (delta == 0)
