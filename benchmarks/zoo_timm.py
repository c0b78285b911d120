"""One small network of every architecture family in timm: which one, what it shows, and how it is made small.

Depths, widths and images are cut down where the family allows it: what matters here is every kind of layer and join a
family has, not its size. Weights are freshly initialised, nothing is downloaded.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import nn
from zoo import Entry

__all__ = ["FAMILIES", "Variant", "timm_models"]

_SMALL = {"img_size": 64}
_SHALLOW = {"img_size": 64, "depth": 2}
_LEVELS = {"img_size": 64, "depths": (1, 1, 1, 1)}


@dataclass(frozen=True)
class Variant:
    """How one network of timm is built.

    Attributes:
        family: What the architecture is, in the words of its paper.
        side: Height and width of the image.
        options: Keyword arguments of ``timm.create_model``.
    """

    family: str
    side: int = 64
    options: dict[str, Any] = field(default_factory=dict)


FAMILIES: dict[str, Variant] = {
    # plain, residual, dense and aggregated convolutional networks
    "vgg11_bn": Variant("plain"),
    "resnet18": Variant("residual"),
    "resnet10t": Variant("residual, tiered stem"),
    "resnet26d": Variant("residual, average pooling in the shortcut"),
    "resnet50_gn": Variant("residual, GroupNorm", options={"layers": (1, 1, 1, 1)}),
    "resnetaa34d": Variant("residual, anti-aliased", options={"layers": (1, 1, 1, 1)}),
    "resnetblur18": Variant("residual, blur pooling"),
    "resnetrs50": Variant("ResNet-RS", options={"layers": (1, 1, 1, 1)}),
    "wide_resnet50_2": Variant("wide residual", options={"layers": (1, 1, 1, 1)}),
    "resnext50_32x4d": Variant("grouped residual", options={"layers": (1, 1, 1, 1)}),
    "seresnet18": Variant("squeeze and excitation"),
    "ecaresnet26t": Variant("efficient channel attention"),
    "legacy_seresnet18": Variant("squeeze and excitation, first form"),
    "legacy_senet154": Variant("SENet-154"),
    "resnetv2_18": Variant("pre-activation residual"),
    "resnetv2_50x1_bit": Variant("Big Transfer (weight standardisation)"),
    "resnetv2_50d_evos": Variant("EvoNorm-S", options={"layers": (1, 1, 1, 1)}),
    "resnetv2_50d_frn": Variant("filter response normalisation", options={"layers": (1, 1, 1, 1)}),
    "resnest14d": Variant("split attention"),
    "skresnet18": Variant("selective kernels"),
    "skresnext50_32x4d": Variant("selective kernels, grouped", options={"layers": (1, 1, 1, 1)}),
    "res2net50_26w_4s": Variant("Res2Net", options={"layers": (1, 1, 1, 1)}),
    "res2next50": Variant("Res2NeXt", options={"layers": (1, 1, 1, 1)}),
    "densenet121": Variant("dense", options={"block_config": (2, 2, 2, 2)}),
    "densenetblur121d": Variant("dense, blur pooling", options={"block_config": (2, 2, 2, 2)}),
    "rdnet_tiny": Variant("RDNet"),
    "dla34": Variant("deep layer aggregation"),
    "dla60_res2next": Variant("deep layer aggregation, Res2NeXt"),
    "dpn48b": Variant("dual path"),
    "dpn68": Variant("dual path, grouped"),
    "ese_vovnet19b_slim": Variant("VoVNet"),
    "ese_vovnet39b_evos": Variant("VoVNet, EvoNorm"),
    "cspresnet50": Variant("cross-stage partial residual"),
    "cspresnext50": Variant("cross-stage partial, grouped"),
    "cspdarknet53": Variant("cross-stage partial Darknet"),
    "cs3darknet_focus_s": Variant("cross-stage partial, three convolutions"),
    "darknet17": Variant("Darknet"),
    "cspnext_tiny": Variant("CSPNeXt"),
    "hrnet_w18_small": Variant("high resolution"),
    "selecsls42": Variant("SelecSLS"),
    "inception_v3": Variant("Inception-v3", side=96),
    "inception_v4": Variant("Inception-v4", side=96),
    "inception_resnet_v2": Variant("Inception-ResNet", side=96),
    "legacy_xception": Variant("Xception"),
    "xception41": Variant("aligned Xception"),
    "xception41p": Variant("aligned Xception, pre-activation"),
    "nasnetalarge": Variant("NASNet", side=96),
    "pnasnet5large": Variant("PNASNet", side=96),
    "tresnet_m": Variant("TResNet"),
    "hgnet_tiny": Variant("HGNet"),
    "hgnetv2_b0": Variant("HGNetV2"),
    "convmixer_768_32": Variant("ConvMixer"),
    # designed by rules, re-parameterised, small
    "regnetx_002": Variant("RegNetX"),
    "regnety_002": Variant("RegNetY"),
    "regnetz_005": Variant("RegNetZ"),
    "regnetv_040": Variant("RegNetV, pre-activation"),
    "repvgg_a0": Variant("RepVGG"),
    "repvgg_b1g4": Variant("RepVGG, grouped"),
    "mobileone_s0": Variant("MobileOne"),
    "gernet_s": Variant("GENet"),
    "resnet32ts": Variant("ByobNet residual"),
    "gcresnext26ts": Variant("global context"),
    "bat_resnext26ts": Variant("bilinear attention transform", side=256),
    "eca_resnext26ts": Variant("efficient channel attention, grouped"),
    "resnet50_clip": Variant("CLIP residual with attention pooling", side=224),
    "resnet51q": Variant("ResNet-Q"),
    "botnet26t_256": Variant("bottleneck transformer", side=256),
    "halonet26t": Variant("HaloNet", side=256),
    "lambda_resnet26t": Variant("lambda network", side=256),
    "lambda_resnet26rpt_256": Variant("lambda network, relative positions", side=256),
    "efficientnet_b0": Variant("EfficientNet"),
    "efficientnet_lite0": Variant("EfficientNet-Lite"),
    "efficientnet_b0_gn": Variant("EfficientNet, GroupNorm"),
    "efficientnet_b0_g8_gn": Variant("EfficientNet, grouped"),
    "efficientnet_b0_g16_evos": Variant("EfficientNet, EvoNorm"),
    "efficientnet_cc_b0_4e": Variant("conditional convolutions"),
    "efficientnet_es": Variant("EfficientNet-EdgeTPU"),
    "efficientnet_blur_b0": Variant("EfficientNet, blur pooling"),
    "efficientnetv2_rw_t": Variant("EfficientNetV2"),
    "gc_efficientnetv2_rw_t": Variant("EfficientNetV2, global context"),
    "tf_efficientnetv2_b0": Variant("EfficientNetV2, padding as in TensorFlow"),
    "mobilenetv1_100": Variant("MobileNet"),
    "mobilenetv2_035": Variant("MobileNetV2"),
    "mobilenetv3_small_050": Variant("MobileNetV3"),
    "mobilenetv4_conv_small_035": Variant("MobileNetV4"),
    "mobilenetv4_hybrid_medium": Variant("MobileNetV4, hybrid"),
    "mobilenet_edgetpu_v2_xs": Variant("MobileNet-EdgeTPU"),
    "mobilenetv5_base": Variant("MobileNetV5", side=128),
    "mnasnet_small": Variant("MnasNet"),
    "spnasnet_100": Variant("Single-Path NAS"),
    "fbnetc_100": Variant("FBNet"),
    "fbnetv3_b": Variant("FBNetV3"),
    "mixnet_s": Variant("MixNet"),
    "tinynet_e": Variant("TinyNet"),
    "hardcorenas_a": Variant("HardCoRe-NAS"),
    "lcnet_035": Variant("PP-LCNet"),
    "lcnetv2_small": Variant("PP-LCNetV2"),
    "rexnet_100": Variant("ReXNet"),
    "rexnetr_100": Variant("ReXNet, rounded"),
    "semnasnet_075": Variant("MnasNet, squeeze and excitation"),
    "ghostnet_050": Variant("GhostNet"),
    "ghostnetv2_100": Variant("GhostNetV2"),
    "ghostnetv3_050": Variant("GhostNetV3"),
    "repghostnet_050": Variant("RepGhost"),
    "fasternet_t0": Variant("FasterNet (partial convolutions)"),
    "starnet_s050": Variant("StarNet"),
    "cpubone_nano": Variant("CPUBone"),
    "lowformer_b0": Variant("LowFormer"),
    # without normalisation, ConvNeXt-like, state-space-like
    "nf_resnet26": Variant("NF-ResNet"),
    "nf_regnet_b0": Variant("NF-RegNet"),
    "nf_seresnet26": Variant("NF-ResNet, squeeze and excitation"),
    "nfnet_l0": Variant("NFNet"),
    "eca_nfnet_l0": Variant("NFNet, efficient channel attention"),
    "test_nfnet": Variant("NFNet, small"),
    "dm_nfnet_f0": Variant("NFNet, DeepMind"),
    "convnext_atto": Variant("ConvNeXt", options={"depths": (1, 1, 1, 1)}),
    "convnext_atto_ols": Variant("ConvNeXt, overlapping stem", options={"depths": (1, 1, 1, 1)}),
    "convnext_zepto_rms": Variant("ConvNeXt, RMSNorm", options={"depths": (1, 1, 1, 1)}),
    "convnextv2_atto": Variant("ConvNeXt V2 (global response normalisation)", options={"depths": (1, 1, 1, 1)}),
    "inception_next_atto": Variant("InceptionNeXt", options={"depths": (1, 1, 1, 1)}),
    "mambaout_femto": Variant("MambaOut", options={"depths": (1, 1, 1, 1)}),
    "focalnet_tiny_srf": Variant("FocalNet"),
    "focalnet_tiny_lrf": Variant(
        "FocalNet, post-normalised", options={"use_post_norm": True, "use_overlap_down": True}
    ),
    "edgenext_xx_small": Variant("EdgeNeXt", options={"depths": (1, 1, 1, 1)}),
    "csatv2": Variant("CSATv2 (discrete cosine transform)", side=512),
    "iformer_t": Variant("iFormer", side=224),
    "efficientvim_m1": Variant("EfficientViM (state space)", side=224),
    # vision transformers
    "vit_tiny_patch16_224": Variant("ViT", options=_SHALLOW),
    "vit_small_patch14_dinov2": Variant("ViT, layer scale", side=56, options={"img_size": 56, "depth": 2}),
    "vit_base_patch16_rpn_224": Variant("ViT, residual post-normalisation", options=_SHALLOW),
    "vit_base_patch16_18x2_224": Variant("ViT, parallel blocks", options=_SHALLOW),
    "vit_base_patch16_xp_224": Variant("ViT, RMSNorm, parallel", options=_SHALLOW),
    "vit_base_patch16_siglip_224": Variant("ViT, attention pooling", options=_SHALLOW),
    "vit_base_patch16_clip_quickgelu_224": Variant("ViT, CLIP", options=_SHALLOW),
    "vit_base_patch16_reg4_gap_256": Variant("ViT, registers", options=_SHALLOW),
    "aimv2_large_patch14_224": Variant("AIMv2", side=56, options={"img_size": 56, "depth": 2}),
    "beit3_base_patch16_224": Variant("BEiT-3", options=_SHALLOW),
    "test_vit3": Variant("ViT, gated or pooled variant", side=160),
    "vit_relpos_small_patch16_224": Variant("ViT, relative positions", options=_SHALLOW),
    "vit_srelpos_small_patch16_224": Variant("ViT, shared relative positions", options=_SHALLOW),
    "vit_tiny_r_s16_p8_224": Variant("ViT, residual stem", options={"img_size": 64}),
    "vit_small_resnet26d_224": Variant("ViT, ResNet backbone", options={"img_size": 64}),
    "vit_base_mci_224": Variant("ViT, FastViT stem", options=_SHALLOW),
    "samvit_base_patch16_224": Variant("Segment Anything encoder", side=224, options={"depth": 3}),
    "naflexvit_base_patch16_gap": Variant("NaFlexViT", options={"img_size": 64, "depth": 2}),
    "deit_tiny_patch16_224": Variant("DeiT", options=_SHALLOW),
    "deit_tiny_distilled_patch16_224": Variant("DeiT, distilled", options=_SHALLOW),
    "deit3_small_patch16_224": Variant("DeiT III", options=_SHALLOW),
    "beit_base_patch16_224": Variant("BEiT", options=_SHALLOW),
    "beitv2_base_patch16_224": Variant("BEiT v2", options=_SHALLOW),
    "eva02_tiny_patch14_224": Variant("EVA-02", side=56, options={"img_size": 56, "depth": 2}),
    "eva02_base_patch16_clip_224": Variant("EVA-02, CLIP", options=_SHALLOW),
    "vit_small_patch16_dinov3": Variant("DINOv3", options=_SHALLOW),
    "vit_small_patch16_rope_mixed_224": Variant("rotary positions, mixed", options=_SHALLOW),
    "vit_pe_core_tiny_patch16_384": Variant("Perception Encoder", options=_SHALLOW),
    "deepseek_vit_412m": Variant("DeepSeek-ViT", side=56, options={"img_size": 56, "depth": 2}),
    "gemma4_vit_167m": Variant("Gemma ViT", side=96, options={"depth": 2}),
    "qwen3_vit_88m": Variant("Qwen3-ViT", options={"depth": 2}),
    "flexivit_small": Variant("FlexiViT", options=_SHALLOW),
    "cait_xxs24_224": Variant("CaiT (talking heads, class attention)", options=_SHALLOW),
    "xcit_nano_12_p16_224": Variant("XCiT (cross-covariance attention)", options=_SHALLOW),
    "convit_tiny": Variant("ConViT (gated positional attention)", options=_SHALLOW),
    "crossvit_tiny_240": Variant("CrossViT", side=240),
    "crossvit_9_dagger_240": Variant("CrossViT, convolutional stem", side=240),
    "tnt_s_patch16_224": Variant("transformer in transformer", options=_SHALLOW),
    "tnt_s_legacy_patch16_224": Variant("transformer in transformer, first form", options=_SHALLOW),
    "volo_d1_224": Variant("VOLO (outlook attention)", side=224),
    "vitamin_small_224": Variant("ViTamin", options={"img_size": 64}),
    "tiny_vit_5m_224": Variant("TinyViT", side=224),
    "hiera_tiny_224": Variant("Hiera", side=224),
    "sam2_hiera_tiny": Variant("Hiera of Segment Anything 2", side=224),
    # hierarchical, windowed and hybrid transformers
    "swin_tiny_patch4_window7_224": Variant("Swin", options={**_LEVELS, "depths": (2, 2, 2, 2), "window_size": 2}),
    "swin_s3_tiny_224": Variant("Swin-S3", side=224),
    "swinv2_tiny_window8_256": Variant("Swin v2", options={**_LEVELS, "depths": (2, 2, 2, 2), "window_size": 2}),
    "swinv2_cr_tiny_ns_224": Variant("Swin v2, CR", side=224, options={"depths": (2, 2, 2, 2)}),
    "pvt_v2_b0": Variant("PVT v2", options={"depths": (1, 1, 1, 1)}),
    "pvt_v2_b2_li": Variant("PVT v2, linear", side=224, options={"depths": (1, 1, 1, 1)}),
    "twins_pcpvt_small": Variant("Twins-PCPVT", options=_LEVELS),
    "twins_svt_small": Variant("Twins-SVT", side=224, options={"depths": (2, 2, 2, 2)}),
    "pit_ti_224": Variant("PiT (pooling)", side=224),
    "pit_ti_distilled_224": Variant("PiT, distilled", side=224),
    "nest_tiny_jx": Variant("NesT", side=224),
    "mvitv2_tiny": Variant("MViTv2", side=224),
    "mvitv2_small_cls": Variant("MViTv2, class token", side=224),
    "davit_tiny": Variant("DaViT (channel attention)", side=224, options={"depths": (1, 1, 1, 1)}),
    "gcvit_xxtiny": Variant("GCViT", side=224),
    "coat_tiny": Variant("CoaT", side=224),
    "coat_lite_tiny": Variant("CoaT-Lite", side=224),
    "levit_128s": Variant("LeViT", side=224),
    "levit_conv_128s": Variant("LeViT, convolutions", side=224),
    "visformer_tiny": Variant("Visformer", side=224),
    "mobilevit_xxs": Variant("MobileViT"),
    "mobilevitv2_050": Variant("MobileViTv2"),
    "maxvit_tiny_tf_224": Variant("MaxViT", side=224),
    "maxvit_rmlp_pico_rw_256": Variant("MaxViT, RMLP", side=256),
    "maxxvit_rmlp_nano_rw_256": Variant("MaxxViT", side=256),
    "test_maxvit": Variant("MaxViT, small", side=160),
    "coatnet_0_224": Variant("CoAtNet", side=224),
    "coatnet_pico_rw_224": Variant("CoAtNet, RW", side=224),
    "coatnext_nano_rw_224": Variant("CoAtNeXt", side=224),
    "test_coatnet": Variant("CoAtNet, small", side=160),
    "fastvit_t8": Variant("FastViT"),
    "fastvit_sa12": Variant("FastViT, attention"),
    "fastvit_mci0": Variant("MobileCLIP"),
    "efficientformer_l1": Variant("EfficientFormer", side=224),
    "efficientformerv2_s0": Variant("EfficientFormerV2", side=224),
    "efficientvit_b0": Variant("EfficientViT, MIT"),
    "efficientvit_l1": Variant("EfficientViT, MIT, large"),
    "efficientvit_m0": Variant("EfficientViT, MSRA", side=224),
    "nextvit_small": Variant("Next-ViT"),
    "repvit_m0_9": Variant("RepViT"),
    "shvit_s1": Variant("SHViT (single head)"),
    "swiftformer_xs": Variant("SwiftFormer", side=224),
    # pooling, mixing, gating and recurrent networks
    "poolformer_s12": Variant("PoolFormer"),
    "poolformerv2_s12": Variant("PoolFormerV2"),
    "convformer_s18": Variant("ConvFormer"),
    "caformer_s18": Variant("CAFormer"),
    "mixer_s32_224": Variant("MLP-Mixer", options=_SMALL),
    "gmixer_12_224": Variant("gated MLP-Mixer", options=_SMALL),
    "resmlp_12_224": Variant("ResMLP", options=_SMALL),
    "gmlp_ti16_224": Variant("gMLP", options=_SMALL),
    "sequencer2d_s": Variant("Sequencer (LSTM)", side=224, options={"layers": (1, 1, 1, 1)}),
}
"""timm's name to how it is built; the order is that of the table."""


def timm_models() -> dict[str, Entry]:
    """A network of every family in timm. Raises: ModuleNotFoundError where timm is not installed."""
    import timm

    def entry(name: str, variant: Variant) -> Entry:
        def build() -> nn.Module:
            return timm.create_model(name, pretrained=False, num_classes=10, **variant.options)

        return Entry(name, variant.family, (3, variant.side, variant.side), build, zoo="timm")

    return {name: entry(name, variant) for name, variant in FAMILIES.items()}
