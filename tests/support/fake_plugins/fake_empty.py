"""A module that implements no hook at all."""
