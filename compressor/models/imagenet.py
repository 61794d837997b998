"""What timm knows of ImageNet's classes."""

from __future__ import annotations


def imagenet_synsets(num_classes: int) -> tuple[str, ...] | None:
    """Return the WordNet id (n01440764 …) of each logit of an ImageNet model, or None for others.

    Args:
        num_classes: Number of logits, which is all that tells ImageNet's subsets apart (1,000 are
            ImageNet-1k, 21,841 ImageNet-22k …).
    """
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    return tuple(str(info.index_to_label_name(index)) for index in range(num_classes))
