"""Masking, decoders, objectives; pretrain and prepare."""
