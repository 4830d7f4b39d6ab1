"""Everything that is to be known from a GPU, in one command of at most ten minutes.

    make gpu-report                                     # on the machine's first GPU
    python -m benchmarks.gpu_report --minutes 5 --skip training
    python -m benchmarks.gpu_report --device cpu --tiny  # tries the script, in minutes

Parts, in this order; each is tried by itself, and a failure is recorded with its message:

    contracts   every rule in float32, bfloat16 and float16: agreement with the CPU, host syncs
    graphs      a step captured in a CUDA graph, replayed, against an eager one
    compiled    a compiled step: graphs that it needs under a scheduler, agreement with eager
    steps       time of a step beside torch (eager and compiled), fused AdamW, peers, the forecast
    quack       symmetric products of quack-kernels against plain ones, by side and batch
    fsdp        a step on a module sharded by FSDP2 over one process
    training    track 3 with Muon, then with Aurora, for the time that is left: loss and tokens/s

Writes `report.json`, anew after every part, and `steps.png`. Every part has a share of the time; a
timer stops what takes longer, and what was found until then is kept.
"""
