"""The work of one frame, counted: multiplications and additions of all products, elementwise steps left out.

Letters: T tokens that a block computes in full, L tokens of one sequence, D width, W windows of one scale.
"""

from __future__ import annotations

from collections.abc import Sequence

from inspectd.detect.architecture import VisionShape
from inspectd.detect.windows import window_patches


def gflop_per_frame(
    shape: VisionShape,
    scales: Sequence[int],
    *,
    stride: int = 1,
    few_shot: bool = False,
    windows: Sequence[int] | None = None,
) -> float:
    """GFLOP of the image tower as it is run: last block for CLS alone, first layer norm and QKV shared by the grid.

    Args:
        scales: sides of the windows in patches; none: the image pass alone.
        few_shot: whether the last block computes every patch of the whole image.
        windows: how many windows of each scale are computed; default: all.
    """
    width, patches = shape.width, shape.patch_count
    counts = windows or [len(window_patches(shape.grid_hw, scale, stride)) for scale in scales]
    spans = [(1, 1 + patches), *((count, 1 + scale * scale) for count, scale in zip(counts, scales, strict=True))]
    mlp_and_out = 4 * width * shape.mlp_width + 2 * width * width
    total = 2.0 * patches * 3 * shape.patch_hw_px[0] * shape.patch_hw_px[1] * width
    total += 6 * width * width * (1 + patches)  # QKV of the first block
    for index, (sequences, length) in enumerate(spans):
        kept = length if index == 0 and few_shot else 1
        tokens = sequences * length
        full_blocks = shape.layers - 1
        total += full_blocks * tokens * mlp_and_out + (full_blocks - 1) * tokens * 6 * width * width
        total += full_blocks * sequences * 4 * length * length * width
        total += tokens * 4 * width * width + sequences * kept * (2 * width * width + mlp_and_out)  # the last block
        total += sequences * 4 * kept * length * width
        total += sequences * 2 * width * shape.embedding
    return total / 1e9
