"""Paint the way from one prompt to another with one seed, as an animated picture: python examples/walk.py [MODEL]."""

import sys

import t2iedit

FRAMES = 8

model = t2iedit.open_model(sys.argv[1] if len(sys.argv) > 1 else "shapes")
here = t2iedit.encode(model, "a red circle on a white background")
there = t2iedit.encode(model, "a blue square on a white background")
images = []
for frame in range(FRAMES):
    mixed = here.blend(there, frame / (FRAMES - 1), "slerp")
    images.append(t2iedit.generate(model, t2iedit.Request(seed=4), conditioning=mixed).image)
images[0].save("walk.gif", save_all=True, append_images=images[1:], duration=200, loop=0)
print("walk.gif")
