"""What a finished model needs to be used, and nothing else: torch, torchvision, safetensors, Pillow, no pickle.

This folder goes along with every model that a run logs. It imports nothing of the runner, so that such a model can
be used where the runner is not installed, and years later.
"""
