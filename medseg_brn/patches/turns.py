"""Sites take turns: which site a patch is of, and which of the site's own patches it is.

Both are pure functions of the patch's index and the seed. Four sites A to D in batches of two, as three of
their rounds might be (`|` ends a batch, `‖` a round):

    balanced    A C | B D ‖ D A | B C ‖ C B | A D ‖
    pure        B B | D D | A A | C C ‖ D D | …
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class SiteTurns:
    """In whose turn each patch is.

    In every round each site has as many patches as any other, so that a site of three cases is met as often
    as one of three hundred. Each round draws anew which site is first, which second, and so on.

    Attributes:
        kind: `balanced`: a batch of N patches has min(N, S) of the S sites, none more than once more than
            another; a round is the least whole number of batches in which all sites get the same. `pure`: a
            batch has one site; a round is S batches.
        sites: their number S.
        batch_size: patches N of one forward pass of one process; batch b holds those from b·N to b·N + N - 1.
        seed: the experiment's.
    """

    kind: Literal["balanced", "pure"]
    sites: int
    batch_size: int
    seed: int

    def locate(self, index: int) -> tuple[int, int]:
        """Returns the number of the site of patch `index`, and how many patches the site had before it."""
        if self.kind == "pure":
            batch, member = divmod(index, self.batch_size)
            turn, place = divmod(batch, self.sites)
            return self._draw_order(turn)[place], turn * self.batch_size + member
        turn, place = divmod(index, self.sites)
        turns_per_round = math.lcm(self.sites, self.batch_size) // self.sites
        return self._draw_order(turn // turns_per_round)[place], turn

    def _draw_order(self, round_number: int) -> list[int]:
        # seeds end in 1, as a list of numbers and the same with zeros after it draw alike
        rng = np.random.default_rng([self.seed, round_number, self.sites, 0, 1])
        return [int(site) for site in rng.permutation(self.sites)]
