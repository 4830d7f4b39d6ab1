"""modded-nanoGPT's optimization benchmark (track 3), with a replaceable optimizer.

One architecture, one data order, one batch of 524,288 tokens; what may change is the optimizer of
the hidden matrices. `settings.py` has the published numbers, `model.py` the model, `loop.py` the
run. Source: Keller Jordan et al., modded-nanogpt, track_3_optimization.
"""
