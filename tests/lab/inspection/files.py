"""Checkpoints made on the fly, in every form that is read."""

import json

import torch
from safetensors.torch import save_file

import polarlight
from polarlight.lab.train.model import GPT
from polarlight.lab.train.model_config import ModelConfig


def model(layers=3):
    """A small language model, two of whose neurons are dead and two of which are doubles."""
    net = GPT(ModelConfig(vocab_size=32, width=16, layers=layers, heads=2), seed=0)
    mlp = net.model.layers[1].mlp
    with torch.no_grad():
        for matrix in (mlp.gate_proj.weight, mlp.up_proj.weight):
            matrix[3] *= 1e-3
            matrix[20] = 2 * matrix[10]
        mlp.gate_proj.weight[7] *= 1e-3  # its up row lives: not dead
        mlp.down_proj.weight[:, 5] *= 1e-3  # nobody reads it
    return net


def trained(net, optimizer=None, steps=2):
    """An optimizer that has state."""
    optimizer = optimizer or polarlight.Muon(net, lr=0.0, aux_lr=0.0)
    tokens = torch.arange(32).reshape(2, 16)
    for _ in range(steps):
        net(tokens, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def sharded(folder, net, suffix):
    """A folder of Hugging Face with two shards and their index."""
    folder.mkdir()
    state = net.state_dict()
    names = list(state)
    parts = {
        f"part-{i}{suffix}": names[i::2]  # every other: a layer's tensors lie in both
        for i in (0, 1)
    }
    for file, own in parts.items():
        content = {name: state[name] for name in own}
        if suffix == ".bin":
            torch.save(content, folder / file)
        else:
            save_file(content, folder / file)
    stem = "pytorch_model.bin" if suffix == ".bin" else "model.safetensors"
    weight_map = {name: file for file, own in parts.items() for name in own}
    (folder / f"{stem}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
