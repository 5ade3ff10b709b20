"""How far a share that was counted on some texts may be from that on all texts like them.

In: a share and how many it was counted on. Out: two bounds. Independent of: what was counted.
"""

import math

Z_95 = 1.959964  # standard deviations of a normal distribution on both sides of its mean


def wilson(accuracy: float, examples: int, z: float = Z_95) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), which holds near 1 too."""
    centre = accuracy + z * z / (2 * examples)
    spread = z * math.sqrt(accuracy * (1 - accuracy) / examples + z * z / (4 * examples * examples))
    scale = 1 + z * z / examples
    # Rounding may leave 0 to 1 by the last digit.
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
