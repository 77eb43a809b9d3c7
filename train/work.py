"""How many operations of the model a token of a run takes, images included."""

from qwen35_jax.config import ModelConfig
from qwen35_jax.planning.flops import training_flops_per_token, vision_flops_per_patch
from train.config import Recipe


def flops_per_token(recipe: Recipe, model: ModelConfig) -> float:
    """Returns the operations of one token of a batch, forward and backward, without what is computed twice.

    Each sequence counts as a single document. With images it counts as full of patches, and every image as one of the
    most pixels.
    """
    data = recipe.data
    text = training_flops_per_token(
        model,
        sequence_length=data.sequence_length,
        adapters=recipe.trains_adapters,
        mtp_steps=recipe.objective.mtp_steps,
    )
    if data.vision is None or model.vision is None:
        return text
    largest = data.vision.max_pixels // model.vision.patch_size**2
    patch = vision_flops_per_patch(model.vision, frame_patches=largest)
    return text + vision_passes(recipe) * patch * data.vision.patches_per_sequence / data.sequence_length


def vision_passes(recipe: Recipe) -> int:
    """Returns how many times the products of the vision tower are computed: once where it is frozen.

    The backward pass of a product is two products, of which adapters need one.
    """
    words = recipe.train if recipe.lora is None else recipe.lora.targets
    if not any(word == "tower" or "visual" in word for word in words):
        return 1
    return 2 if recipe.trains_adapters else 3
