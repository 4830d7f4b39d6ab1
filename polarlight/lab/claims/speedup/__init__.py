"""Speedup of spectral optimizers over tuned AdamW: `polarlight reproduce speedup`.

`plan` says what is run, and was written before the runs; `running` trains what is missing;
`analysis` turns recorded losses into speedups with intervals; `page` writes them.
"""
