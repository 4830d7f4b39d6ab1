"""Claims of this literature, each a small file that anyone can run: `polarlight reproduce`.

A claim says what is claimed and by whom, in which reduced setting it is tried here, on what
statistic and by which rule it is decided. What was found so far lies in `results/`.
"""
