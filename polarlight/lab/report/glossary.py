"""Titles and captions of the numbers that probes record, for pages that draw them.

Keys are places in a probe's record, `update/starved/0.1` for record["update"]["starved"]["0.1"].
"""

from collections.abc import Mapping
from typing import NamedTuple


class Reading(NamedTuple):
    """Title and caption of one number."""

    title: str
    says: str


NEURONS: Mapping[str, Reading] = {
    "update/starved/0.1": Reading("Starved rows", "rows below 0.1 of an equal share of the update"),
    "update/starved/0.25": Reading("Nearly starved rows", "the same, below 0.25"),
    "update/starved/0.01": Reading("Rows that hardly move", "the same, below 0.01"),
    "pair/update/0.1": Reading(
        "Starved neurons", "neurons whose gate and up rows are both below 0.1 of an equal share"
    ),
    "momentum/starved/0.1": Reading(
        "Starved by the momentum", "rows that plain Muon would give less than 0.1 of an equal share"
    ),
    "update/ever/0.1": Reading(
        "Starved in some sample", "rows that were below 0.1 in some sample so far"
    ),
    "update/stayed/0.1": Reading(
        "Starved ever since", "rows that were below 0.1 in some sample, and in every sample since"
    ),
    "update/effective": Reading(
        "Effective neurons",
        "number of equal rows that would be as uneven as the update's, over all rows",
    ),
    "update/spread": Reading("Spread of the shares", "deviation over mean of the rows' shares"),
    "update/min": Reading("Least share", "of any row, in units of an equal share of the update"),
    "row_norm_spread": Reading(
        "Spread of the update's row norms", "deviation over mean; zero: all rows move equally far"
    ),
    "weight/row_norm_spread": Reading(
        "Spread of the weight's row norms", "deviation over mean of the weight's own row norms"
    ),
    "ratio": Reading(
        "Update over weight", "norm of the step, lr times direction, over that of the weight"
    ),
    "rms": Reading("Size of the direction", "root mean square of its entries, without lr"),
    "weight/rms": Reading("Size of the weight", "root mean square of its entries"),
    "cosine": Reading("Cosine with the momentum", "of direction and momentum, as long vectors"),
    "alignment": Reading(
        "Alignment with the momentum",
        "inner product with the momentum over its nuclear norm; 1 for its exact polar factor",
    ),
    "orthogonality": Reading(
        "Orthogonality error", "distance from equal singular values; 0 for a polar factor"
    ),
    "stable_rank": Reading(
        "Stable rank of the update", "squared Frobenius over squared spectral norm"
    ),
    "weight/stable_rank": Reading("Stable rank of the weight", "the same of the weight"),
    "quantiles/0": Reading("Least singular value", "of the update, over their root mean square"),
    "quantiles/0.5": Reading("Median singular value", "of the update, over their root mean square"),
    "quantiles/1": Reading("Largest singular value", "of the update, over their root mean square"),
}
"""Of `NeuronMonitor`, per matrix."""

ACTIVATIONS: Mapping[str, Reading] = {
    "dead/0.1": Reading(
        "Silent neurons", "mean magnitude before the down projection below 0.1 of the layer's"
    ),
    "dead/0.01": Reading("Mute neurons", "the same, below 0.01 of the layer's"),
    "magnitude/0.1": Reading(
        "The quietest tenth", "a tenth of the neurons are quieter than this, over the layer's mean"
    ),
    "gate/closed": Reading("Closed gates", "of all tokens and neurons, gates below -4"),
    "gate/open": Reading("Open gates", "of all tokens and neurons, gates above 4"),
    "gate/always_closed": Reading(
        "Gates that never open", "neurons whose gate is below -4 at every token"
    ),
}
"""Of `ActivationMonitor`, per layer."""

DESCENT: Mapping[str, Reading] = {
    "potential": Reading("Descent potential", "squared slope over curvature along the update"),
}
"""Of `DescentPotential`, per matrix."""
