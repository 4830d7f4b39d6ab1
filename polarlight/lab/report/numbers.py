"""Numbers as text; an unknown number is a dash."""

NOTHING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"  # as wide as a plus, so that columns align
THIN = "\N{NARROW NO-BREAK SPACE}"


def fixed(value: float | None, digits: int) -> str:
    """Format a number with `digits` decimals and spaces between thousands."""
    if value is None:
        return NOTHING
    return f"{value:,.{digits}f}".replace(",", THIN).replace("-", MINUS)


def signed(value: float | None, digits: int) -> str:
    """Format a difference with its sign; zero has none."""
    if value is None or value <= 0:
        return fixed(value, digits)
    return "+" + fixed(value, digits)


def percent(fraction: float | None, digits: int = 1) -> str:
    """Format a fraction in percent."""
    return NOTHING if fraction is None else fixed(100 * fraction, digits) + THIN + "%"


def count(number: int, thing: str) -> str:
    """Format a number of things: `1 step`, `3 steps`."""
    return f"{fixed(number, 0)} {thing}" + ("" if number == 1 else "s")


def compact(number: float) -> str:
    """Format a large number with three digits: 12.3 thousand, 1.24 million."""
    for size, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if number >= 0.9995 * size:
            return f"{number / size:#.3g}".rstrip(".") + f" {word}"
    return f"{number:.0f}"
