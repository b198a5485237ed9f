"""The code that every logged model carries, so that it can be used without the runner, and years later.

It imports nothing else of the runner, only torch, torchvision, safetensors, NumPy, Pillow and, to be served, MLflow.
Models are stored without pickle.
"""
