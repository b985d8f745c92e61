"""Edit in t2iedit, paint in diffusers: python examples/plain_diffusers.py [MODEL]."""

import sys

import torch

import t2iedit

model = t2iedit.open_model(sys.argv[1] if len(sys.argv) > 1 else "shapes")
pipeline = model.pipeline  # a diffusers pipeline as any other
edit = {"name": "decor", "options": {"undesired": ["a blue square"], "stop": 0.6}}
conditioning = t2iedit.encode(model, "a red circle and a blue square", edits=[edit])
conditioning.save("edited.safetensors")
image = pipeline(**conditioning.for_diffusers(), generator=torch.Generator().manual_seed(0)).images[
    0
]
image.save("edited.png")
print("edited.safetensors, edited.png")
