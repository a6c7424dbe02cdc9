"""How many processes train one model together, and how.

base       a step, on one process
ddp        a copy of the model on each process (PyTorch DDP)
fsdp       a shard of the model on each process (PyTorch FSDP2)
deepspeed  ZeRO 1, 2 and 3
launch     starting the processes
"""
