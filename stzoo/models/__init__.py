"""Loading and checking models, poolings, LoRA, encoding, cross-encoders."""
