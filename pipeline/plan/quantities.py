"""Quantities as people read them."""

MINUTE, HOUR, DAY = 60, 3600, 86400


def duration(seconds: float) -> str:
    """A time in the largest unit of which there are two."""
    for unit, name in ((DAY, "days"), (HOUR, "hours"), (MINUTE, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def percent(share: float) -> str:
    """A share, with a decimal where it is small."""
    return f"{share:.1%}" if abs(share) < 0.1 else f"{share:.0%}"


def count(number: float) -> str:
    """A number of things that need not be whole: two digits, and all before the point."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def operations(flops: float) -> str:
    """A number of floating-point operations."""
    return f"{flops / 1e9:,.1f}" if flops < 1e11 else f"{flops / 1e9:,.0f}"


def rate(per_second: float) -> str:
    """A rate: three digits, and all before the point."""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"
