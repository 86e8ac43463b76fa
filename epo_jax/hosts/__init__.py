"""Several processes, one run: on the hosts of a TPU slice, on the GPUs of a cluster, or two on one machine to try it.

JAX's multi-controller runtime does the work: every process runs the same program on the same global mesh. What is here is what the program must
agree on beside the arrays.

    joining.py    jax.distributed from the configuration or from what the cluster says, and how a process leaves
    watch.py      a process that dies ends the others, with one sentence
    exchange.py   host data between processes: everyone's to everyone, the first one's to everyone
    stopping.py   a request to stop that one process got is everybody's, at the same optimizer step
    arrays.py     numpy arrays onto the global mesh and back, and each process's own copy of the weights to play with
    unwritten.py  what the other processes have in the place of metrics and page
    shares.py     which episodes a process plays and has judged; all of them at every process afterwards

With one process none of this does anything.
"""
