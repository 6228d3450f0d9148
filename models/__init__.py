"""The model package: ``nn.Module``s and tensors only. It imports torch and numpy, and nothing from ``pipelines``."""
