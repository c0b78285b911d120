"""Vision networks of Hugging Face's transformers, each from a small configuration of its own; nothing is downloaded."""

from typing import Any

from torch import Tensor, nn
from zoo import Entry

__all__ = ["huggingface_models"]

_BERT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
_PATCH = {**_BERT, "image_size": 64, "patch_size": 16, "num_labels": 10}
_YOLOS = {**_PATCH, "image_size": [64, 64], "num_detection_tokens": 5}
_SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
_CONVNEXT = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "num_labels": 10}
_LEVELS = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}
_RESNET = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}

_MODELS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "vit": ("ViT", "ViTConfig", "ViTForImageClassification", _PATCH),
    "deit": ("DeiT", "DeiTConfig", "DeiTForImageClassification", _PATCH),
    "beit": ("BEiT", "BeitConfig", "BeitForImageClassification", {**_PATCH, "use_relative_position_bias": True}),
    "dinov2": ("DINOv2", "Dinov2Config", "Dinov2ForImageClassification", {**_PATCH, "mlp_ratio": 2}),
    "dinov2_swiglu": (
        "DINOv2, SwiGLU",
        "Dinov2Config",
        "Dinov2ForImageClassification",
        {**_PATCH, "mlp_ratio": 2, "use_swiglu_ffn": True},
    ),
    "siglip": ("SigLIP", "SiglipVisionConfig", "SiglipVisionModel", _PATCH),
    "clip": ("CLIP", "CLIPVisionConfig", "CLIPVisionModel", _PATCH),
    "swin": ("Swin", "SwinConfig", "SwinForImageClassification", {**_SWIN, "num_labels": 10}),
    "swinv2": ("Swin v2", "Swinv2Config", "Swinv2ForImageClassification", {**_SWIN, "num_labels": 10}),
    "segformer": (
        "SegFormer",
        "SegformerConfig",
        "SegformerForSemanticSegmentation",
        {"hidden_sizes": [16, 32, 40, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 32, "num_labels": 6},
    ),
    "convnext": ("ConvNeXt", "ConvNextConfig", "ConvNextForImageClassification", _CONVNEXT),
    "convnextv2": ("ConvNeXt V2", "ConvNextV2Config", "ConvNextV2ForImageClassification", _CONVNEXT),
    "resnet": ("residual", "ResNetConfig", "ResNetForImageClassification", {**_RESNET, "num_labels": 10}),
    "regnet": (
        "RegNet",
        "RegNetConfig",
        "RegNetForImageClassification",
        {**_RESNET, "groups_width": 8, "num_labels": 10},
    ),
    "mobilevit": (
        "MobileViT",
        "MobileViTConfig",
        "MobileViTForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [24, 32, 40],
            "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 64],
            "num_labels": 10,
        },
    ),
    "poolformer": (
        "PoolFormer",
        "PoolFormerConfig",
        "PoolFormerForImageClassification",
        {**_LEVELS, "num_labels": 10},
    ),
    "pvt_v2": (
        "PVT v2",
        "PvtV2Config",
        "PvtV2ForImageClassification",
        {**_LEVELS, "image_size": 64, "num_attention_heads": [1, 2, 4, 8], "num_labels": 10},
    ),
    "dpt": (
        "DPT (dense prediction)",
        "DPTConfig",
        "DPTForDepthEstimation",
        {
            **_BERT,
            "num_hidden_layers": 4,
            "image_size": 64,
            "patch_size": 16,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 16, 24, 24],
            "fusion_hidden_size": 16,
        },
    ),
    "yolos": ("YOLOS (detection)", "YolosConfig", "YolosForObjectDetection", _YOLOS),
}


_ASKED = ("logits", "pred_boxes", "predicted_depth")


class First(nn.Module):
    """What is asked of a network, without the features and caches that its result holds too.

    Args:
        model: Takes ``pixel_values`` and returns a ``ModelOutput``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        result = self.model(pixel_values=pixel_values, return_dict=True)
        found = tuple(result[name] for name in _ASKED if name in result)
        return found or (result["pooler_output"],)


def huggingface_models() -> dict[str, Entry]:
    """Vision models of transformers. Raises: ModuleNotFoundError where transformers is not installed."""
    import transformers

    def entry(name: str, kind: str, config: str, model: str, options: dict[str, Any]) -> Entry:
        def build() -> nn.Module:
            return First(getattr(transformers, model)(getattr(transformers, config)(**options)))

        return Entry(name, kind, (3, 64, 64), build, zoo="huggingface")

    entries = {name: entry(name, *row) for name, row in _MODELS.items()}
    return entries | {"detr": Entry("detr", "DETR (detection)", (3, 64, 64), _detr, zoo="huggingface")}


def _detr() -> nn.Module:
    """DETR with transformers' own ResNet as the backbone."""
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(**_RESNET, out_features=["stage4"])
    options = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4}
    options |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_queries": 5}
    config = DetrConfig(use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=backbone, **options)
    return First(DetrForObjectDetection(config))
