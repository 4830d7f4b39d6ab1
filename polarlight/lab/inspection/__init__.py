"""Looking into a checkpoint: whose neurons are dead, doubled or uneven, layer by layer.

Tensors are read one at a time, so that a file of many gigabytes needs the memory of its largest
matrix. Behind `polarlight inspect`.
"""
