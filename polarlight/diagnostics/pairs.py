"""Which gate and up matrices belong to the same neurons."""

from polarlight.routing.roles.names import MLP
from polarlight.routing.roles.vocabulary import Part
from polarlight.routing.roles.wrappers import plain_name


def block_and_half(name: str, part: int, parts: int) -> tuple[str, str] | None:
    """The MLP a matrix belongs to, and whether it is its `gate` or its `up`; None if neither.

    Args:
        name: The parameter's name.
        part: Which part of its view the matrix is.
        parts: How many there are; two are a gate and an up projection in one parameter.
    """
    if parts == 2:
        return name, ("gate", "up")[part]
    words = plain_name(name).split(".")
    place = -2 if words[-1] == "weight" and len(words) > 1 else -1
    block, word = ".".join(words[:place]), words[place].lower()
    for half, kind in (("gate", Part.GATE), ("up", Part.UP)):
        if word in MLP[kind]:
            return block, half
    return None
