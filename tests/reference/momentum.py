"""Momentum, in its two conventions.

    EMA:         M <- mu M + (1 - mu) G,   N = (1 - mu) G + mu M  (Nesterov)   or   N = M
    heavy ball:  M <- mu M + G,            N = G + mu M           (Nesterov)   or   N = M

Source: EMA: code of NorMuon (arXiv 2510.05491) and Aurora; heavy ball: code of MuonEq (2603.28254).
"""

import numpy as np


def ema(G, state, mu, nesterov):
    state["M"] = mu * state.get("M", np.zeros_like(G)) + (1 - mu) * G
    return (1 - mu) * G + mu * state["M"] if nesterov else state["M"]


def heavy_ball(G, state, mu, nesterov):
    state["M"] = mu * state.get("M", np.zeros_like(G)) + G
    return G + mu * state["M"] if nesterov else state["M"]


def blockwise(M, block, power):
    """Nearest int8 codes and scales of the rows of M, and what they stand for.

    value of code c in a block of scale s:  sign(c) (|c| / 127)^power s
    """
    codes, values, scales = np.zeros(M.shape, np.int8), np.zeros(M.shape), []
    for i, row in enumerate(M):
        for start in range(0, len(row), block):
            part = row[start : start + block]
            s = np.abs(part).max()
            rank = np.rint(127 * (np.abs(part) / s) ** (1 / power)) if s else np.zeros(len(part))
            codes[i, start : start + block] = np.sign(part) * rank
            values[i, start : start + block] = np.sign(part) * (rank / 127) ** power * s
            scales.append(s)
    return codes, np.reshape(scales, (len(M), -1)), values
