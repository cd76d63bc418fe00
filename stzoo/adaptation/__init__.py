"""From plain text to a better retriever: reading documents, generating queries, and adapting a model to them."""
