"""Queries for passages without labels.

generator.py    what a generator is; the styles of queries
endpoint.py     asks an OpenAI-compatible server
local_model.py  runs a language model by transformers; decoding.py samples its answers
from_text.py    takes titles, sentences, spans and keywords from the passage itself, without a model
answers.py      reads and checks what comes back
storage.py      parts of finished answers, from which an interrupted run continues
page.py         questions.html
"""
