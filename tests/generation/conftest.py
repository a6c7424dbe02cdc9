"""One thread: the models are tiny, and more would only wait for each other."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

torch.set_num_threads(1)
