"""Inspection of a checkpoint: dead, doubled and uneven neurons, layer by layer.

Tensors are read one at a time, so that a file of many gigabytes needs the memory of its largest
matrix. Behind `polarlight inspect`.
"""
