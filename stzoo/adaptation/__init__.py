"""From plain text to a better retriever: reading documents, asking questions, adapting a model."""
