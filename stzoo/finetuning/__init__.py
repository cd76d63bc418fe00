"""Losses, balancers, mining, episodes, several tasks; finetune."""
