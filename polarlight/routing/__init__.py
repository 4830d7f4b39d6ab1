"""Routing: the role of each parameter, the rule it gets, and the reason."""

from polarlight.routing.explain import Explanation, explain
from polarlight.routing.roles import Assignment, Part, Role, infer_roles
from polarlight.routing.route import Route, per_head, route
from polarlight.routing.view_text import view_from_json, view_to_json

__all__ = [
    "Assignment",
    "Explanation",
    "Part",
    "Role",
    "Route",
    "explain",
    "infer_roles",
    "per_head",
    "route",
    "view_from_json",
    "view_to_json",
]
