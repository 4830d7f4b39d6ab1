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
