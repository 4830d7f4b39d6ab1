"""Routing: the role of each parameter, the rule it gets, and the reason."""

from polarlight.routing.explain import Explanation, explain
from polarlight.routing.layer_decay import layerwise_lr_decay
from polarlight.routing.roles import Assignment, Part, Role, infer_roles
from polarlight.routing.route import Overrides, Route, per_head, route
from polarlight.routing.view_text import view_from_json, view_to_json

__all__ = [
    "Assignment",
    "Explanation",
    "Overrides",
    "Part",
    "Role",
    "Route",
    "explain",
    "infer_roles",
    "layerwise_lr_decay",
    "per_head",
    "route",
    "view_from_json",
    "view_to_json",
]
