"""The contract with plugins, its manager, and the built-in components."""
