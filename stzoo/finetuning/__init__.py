"""Fine-tuning: losses, hard-negative mining, episodes, training on several tasks, and `finetune`."""
