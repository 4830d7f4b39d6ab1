"""The model of modded-nanoGPT's optimization benchmark (track 3): its summed loss.

    x <- norm(embed, g);  per block x <- x + attn(norm(x, g1)), x <- x + mlp(norm(x, g2))
    loss = sum over tokens of -log softmax(15 z / sqrt(z^2 + 225)),  z = proj(norm(x, g))

norm(x, g) = g x / sqrt(mean(x^2) + eps); attention: q and k normed per head without gains, then
turned by the angles position * (1/1024)^(i / (d/4 - 1)), i < d/4, and by nothing in the other
quarter of the pairs; scores 0.12 q'k over the past; mlp: proj(relu(fc x)^2); biases everywhere.

Source: KellerJordan/modded-nanogpt, records/track_3_optimization/train_gpt_simple.py.
"""

import numpy as np

EPS = np.finfo(np.float64).eps


def loss(weights, tokens, targets, *, layers, head_dim):
    """`weights` by name; tokens and targets are [batch, positions]."""
    total = 0.0
    for row, wanted in zip(tokens, targets, strict=True):
        x = norm(weights["embed.weight"][row], weights["norm1.gains"])
        for i in range(layers):
            own = {k.removeprefix(f"blocks.{i}."): w for k, w in weights.items()}
            x = x + attention(own, norm(x, own["norm1.gains"]), head_dim)
            x = x + mlp(own, norm(x, own["norm2.gains"]))
        z = layer(weights, "proj", norm(x, weights["norm2.gains"]))
        z = 15 * z / np.sqrt(z**2 + 225)
        largest = z.max(axis=-1, keepdims=True)
        log_sum = np.log(np.exp(z - largest).sum(axis=-1)) + largest[:, 0]
        total += sum(log_sum[t] - z[t, wanted[t]] for t in range(len(row)))
    return total


def norm(x, gains=1.0):
    return gains * x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPS)


def layer(weights, name, x):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def attention(weights, x, head_dim):
    q, k, v = (layer(weights, f"attn.{name}", x) for name in "qkv")
    out = np.zeros_like(v)
    for start in range(0, x.shape[1], head_dim):
        head = slice(start, start + head_dim)
        queries, keys = (turned(norm(t[:, head]), head_dim) for t in (q, k))
        for t in range(len(x)):
            scores = np.array([0.12 * queries[t] @ keys[s] for s in range(t + 1)])
            shares = np.exp(scores - scores.max())
            out[t, head] = shares / shares.sum() @ v[: t + 1, head]
    return layer(weights, "attn.proj", out)


def turned(x, head_dim):
    """Pairs (i, i + d/2) turned clockwise by their angle; the second half of the pairs stays."""
    y = x.copy()
    for t in range(len(x)):
        for i in range(head_dim // 4):
            angle = t * (1 / 1024) ** (i / (head_dim // 4 - 1))
            a, b = x[t, i], x[t, i + head_dim // 2]
            y[t, i] = a * np.cos(angle) + b * np.sin(angle)
            y[t, i + head_dim // 2] = b * np.cos(angle) - a * np.sin(angle)
    return y


def mlp(weights, x):
    return layer(weights, "mlp.proj", np.maximum(layer(weights, "mlp.fc", x), 0) ** 2)
