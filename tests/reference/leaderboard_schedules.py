"""Rates, momenta and weight decays of the results of `leaderboard.py`, by step and kind."""

BALL = (4, 5, 8, 13, 19, 25, 27, 33, 37)
POWERCOOL = {20: 3105, 29: 3105, 30: 3050, 32: 3105, 38: 3020, 40: 2980, 42: 2980}
POWERCOOL |= {34: 3050, 43: 2950}
POWERCOOL |= {41: 2980, 44: 2900, 45: 2900, 46: 2900}
PRUNED = (30, 34, 38, 40, 41, 42, 43)
MUOWN = (23, 31)
LATE = (44, 45, 46)
MATRIX_LR = {1: (0.02, 0.01), 2: (0.0015, 0.1), 3: (0.025, 0.0125), 6: (0.025, 0.025)}
MATRIX_LR |= {7: (0.10, 0.0125), 10: (0.035, 0.025), 12: (0.035, 0.025), 18: (0.035, 0.025)}
MATRIX_LR |= {21: (0.0015, 0.2), 22: (0.03, 0.015), 26: (0.04, 0.025), 28: (0.02, 0.025)}
MATRIX_LR |= {15: (0.02, 0.025), 23: (0.00325, 0.0), 31: (0.0045, 0.0)}
KIND_LR = {"output": (0.025, 0.025), "fc": (0.03, 0.0375), "down": (0.03, 0.025)}
MATRIX_LR |= {35: (0.01, 0.1), 36: (0.025, 0.05), 39: (0.035, 0.025)}
LENGTH = {1: 3600, 2: 5625, 3: 3500, 4: 4875, 5: 3325, 6: 3375, 7: 3325, 8: 3275, 9: 3250, 10: 3300}
LENGTH |= {11: 3225, 12: 3350, 13: 3210, 14: 3175, 16: 3175, 17: 3200, 18: 3250, 19: 3125, 21: 4150}
LENGTH |= {22: 8500, 24: 3175, 25: 3125, 26: 3125, 27: 3200, 28: 3200, 35: 3375, 36: 3250, 37: 3250}
LENGTH |= {15: 3300, 23: 3165, 31: 3045, 33: 3400, 39: 3150}


def ramp(t, a, b):
    return min(max((t - a) / (b - a), 0.0), 1.0)


def linear(t, T, f):
    return min(1.0, (1 - t / T) / f)


def power(t, T, f, q, floor):
    return floor + (1 - floor) * min(max((1 - t / T) / f, 0), 1) ** q


def power_cool(k, t, clock):
    end = 3010 if k == 43 and t >= clock(2600) else POWERCOOL[k]
    left = max((clock(end) - t) / clock.ratio, 0)
    return tuple(min(1.0, (left / length) ** 1.2) for length in (2386.4, 1413.0))


def rates(k, t, clock):
    """Factors on the rates of matrices and of the rest."""
    if k in POWERCOOL:
        return power_cool(k, t, clock)
    T = clock(LENGTH[k])
    if k == 2:
        both = linear(t, T, 0.7) * min(1, (t + 1) / max(clock(250), 1))
        return both, both
    if k == 4:
        warm = max(clock(250), 1)
        return (t / warm if t < warm else 1 - t / T), linear(t, T, 0.4)
    if k == 25:
        return power(t, T, 1, 1.5, 0.017), power(t, T, 0.4, 1.5, 0.04)
    if k == 27:
        return power(t, T, 1, 1.25, 0), linear(t, clock(3125), 0.4)
    if k in BALL:
        aux = power(t, T, 0.5, 1, 0.1) if k == 33 else linear(t, T, 0.85 if k == 37 else 0.4)
        return 1 - t / T, aux
    if k in MUOWN:
        return (power(t, T, 0.7, 0.9, 0),) * 2
    return tuple(linear(t, T, fall) for fall in ((0.8, 0.4) if k == 24 else (0.7, 0.7)))


def aux_numbers(k):
    """Rates of embed, head and vectors, and weight decay."""
    if k == 36:
        return (0.7, 0.004, 0.015), 0.001
    if k in MUOWN:
        return (0.6, 0.009375, 0.03), 0.0
    return ((0.91, 0.0064, 0.0195), 0.001) if k == 37 else ((0.3, 1 / 320, 0.01), 0.0)


def aux_beta2(k, kind):
    if k not in PRUNED + LATE:
        return 0.95
    if k in LATE:
        return {"biases": 0.997, "output_biases": 0.9965}.get(kind, 0.99)
    return 0.99


def momentum_of(k, t, clock):
    if k == 31:
        return 0.946
    nominal = {
        30: 3020,
        34: 3020,
        43: 2850,
        38: 2900,
        40: 2900,
        41: 2900,
        42: 2900,
        44: 2900,
        45: 2900,
        46: 2900,
    }.get(k)
    if nominal is None:
        return 0.0 if k == 22 else 0.95
    c = 200 if k in LATE else 100
    warm, end = max(clock(300), 1), clock(nominal - c)
    end = max(end, warm + 1)
    last = max(clock(nominal), end + 1)
    return 0.85 + 0.1 * ramp(t, 0, warm) - 0.1 * ramp(t, end, last)


def matrix_lr(k, kind):
    lr, wd = MATRIX_LR.get(k, (0.018 if k in BALL else 0.0375, 0.0))
    lr, wd = KIND_LR.get(kind, (lr, wd)) if k == 15 else (lr, wd)
    return (0.025 if k == 33 else lr), wd
